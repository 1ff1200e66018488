"""What recordings know of hands, frame by frame, as training reads it."""

from dataclasses import dataclass

import numpy as np
import torch
from einops import rearrange

from worldscape.conditioning.hands import ACTION_WIDTHS, HAND_ACTION_WIDTH, HAND_STATE_WIDTH, HANDS, to_delta
from worldscape.conditioning.layers import Limbs, Thing
from worldscape.data.episode import Episode
from worldscape.engine_frames import RecordedHands
from worldscape.slot_hands import SlotHands

NO_TASK = -1


@dataclass(frozen=True, kw_only=True, slots=True)
class HandTracks:
    """Hands of all N frames of a FrameStore, left then right; zero where there is none.

    state and command float32 [N, 2, 16] in world axes, present bool [N, 2]; action float32 [N, 2, 13] that led to the
    frame and is_told bool [N, 2], whether it is known; task int64 [N]: place in `hand_tasks.HAND_TASKS`,
    NO_TASK without. places float32 [N, 2, 3] of object and target in world axes (NaN where not recorded), touch float32
    [N, 3]: contact, grasped, lifted.
    """

    state: np.ndarray
    command: np.ndarray
    present: np.ndarray
    action: np.ndarray
    is_told: np.ndarray
    task: np.ndarray
    places: np.ndarray
    touch: np.ndarray

    def at(self, index: np.ndarray) -> RecordedHands:
        """The hands of the frames at these positions [...]."""
        return RecordedHands(*(torch.from_numpy(part[index]) for part in (self.state, self.command, self.present)))

    def moves(self, index: np.ndarray) -> torch.Tensor:
        """Whether things move in the frames at these positions [...]: where there are hands. bool [...]."""
        return torch.from_numpy(self.present[index].any(-1))

    def limbs(self, index: np.ndarray, pose: torch.Tensor) -> Limbs:
        """The kinematic hands of the frames at these positions [B], seen from poses [B, 4, 4], and the object that was
        recorded, on their device."""
        state, command, present = (part.to(pose.device) for part in self.at(index))
        hands = SlotHands.absent(len(index), pose).placed(state, command, present, pose)
        return hands.limbs(hands.workspace(pose), self.rows)._replace(thing=self.thing(index, pose))

    def thing(self, index: np.ndarray, like: torch.Tensor) -> Thing:
        """The object in the frames at these positions [B], where it was recorded and there is a hand; the table is the
        workspace's."""
        place = torch.from_numpy(self.places[index, 0]).to(like)
        is_known = place.isfinite().all(-1) & self.moves(index).to(like.device)
        place = torch.where(is_known[:, None], place, 0.0)
        return Thing(centre=place, moved=place, table=place.new_zeros(len(place)), present=is_known)

    @property
    def rows(self) -> tuple[int, ...]:
        """The hands that are ever present, as `hands.HANDS` names them: the right one alone, or both."""
        return HANDS["both"] if self.present[:, 0].any() else HANDS["right"]


def read_tracks(episodes: list[Episode]) -> HandTracks | None:
    """The tracks of episodes one after another; None where no episode has hands."""
    if all(episode.hand_state is None for episode in episodes):
        return None
    parts = [_track(episode) for episode in episodes]
    return HandTracks(**{name: np.concatenate([part[name] for part in parts]) for name in parts[0]})


def _track(episode: Episode) -> dict[str, np.ndarray]:
    frames = len(episode) + 1
    blank = np.zeros((frames, 2, HAND_STATE_WIDTH), np.float32)
    state = blank if episode.hand_state is None else episode.hand_state
    present = np.zeros((frames, 2), bool) if episode.hand_present is None else episode.hand_present
    action, is_told = _actions(episode)
    task = np.full(frames, NO_TASK) if episode.task_id is None else episode.task_id
    return {
        "state": state.astype(np.float32),
        "command": (state if episode.hand_command is None else episode.hand_command).astype(np.float32),
        "present": present.astype(bool),
        "action": action,
        "is_told": is_told,
        "task": task.astype(np.int64),
        **_things(episode),
    }


def _things(episode: Episode) -> dict[str, np.ndarray]:
    """Places of object and target [T + 1, 2, 3], NaN where they are not recorded, and touch [T + 1, 3]."""
    frames = len(episode) + 1
    places, touch = np.full((frames, 2, 3), np.nan, np.float32), np.zeros((frames, 3), np.float32)
    if episode.object_pose is not None and episode.target is not None:
        places[:, 0], places[:, 1] = episode.object_pose[:, :3, 3], episode.target
    for column, flags in enumerate((episode.contact, episode.grasped, episode.lifted)):
        if flags is not None:
            touch[:, column] = flags
    return {"places": places, "touch": touch}


def _actions(episode: Episode) -> tuple[np.ndarray, np.ndarray]:
    """Hand actions aligned with the frame they led to [T + 1, 2, 13], and whether they are known [T + 1, 2].

    They are where a simulator told the hands where to go (`hand_command`): of one hand, the right one, or of both.
    """
    rows = np.zeros((len(episode) + 1, 2, HAND_ACTION_WIDTH), np.float32)
    is_told = np.zeros((len(episode) + 1, 2), bool)
    widths = {(width * hands,): width for width in ACTION_WIDTHS.values() for hands in (1, 2)}
    if episode.hand_command is not None and episode.actions.shape[1:] in widths:
        width = widths[episode.actions.shape[1:]]
        told = to_delta(rearrange(episode.actions, "t (hands a) -> t hands a", a=width).clip(-1.0, 1.0))
        rows[1:, -told.shape[1] :], is_told[1:, -told.shape[1] :] = told, True
    return rows, is_told
