"""What the heads of hands learn from recordings: by how much wrists miss their goals, and where the things are that
their tasks are about."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from worldscape.codec import blur
from worldscape.conditioning.hands import (
    HandScale,
    apply_hand_action,
    state_from_vector,
    state_to_vector,
    vector_from_rotation,
)
from worldscape.conditioning.reproject import MIN_DEPTH
from worldscape.data.clips import FrameStore
from worldscape.data.hand_tracks import NO_TASK, HandTracks
from worldscape.hand_heads import ThingsHead
from worldscape.hand_tasks import HAND_TASKS, Facts, Touch, fingertip_and_palm, judge
from worldscape.heads import THING_CELL, Heads

LOCATED = 0.02  # metres of error that count as one
SPREAD_WEIGHT = 0.1
LIGHT = 0.2  # largest change of a colour's brightness
NOISE = 0.06  # largest standard deviation of noise on pictures, of which a picture goes from -1 to 1


def hand_labels(store: FrameStore, tracks: HandTracks, now: np.ndarray, scale: HandScale) -> dict[str, Tensor]:
    """What followed the frames `now` [B], each with a successor: hand_state and goal [B, 2, 16], lag [B, 2, 6] in steps
    of `scale`, is_told [B, 2] (whether they count)."""
    command, action = torch.from_numpy(tracks.command[now]), torch.from_numpy(tracks.action[now + 1])
    goal = apply_hand_action(state_from_vector(command), action, scale)
    reached = state_from_vector(torch.from_numpy(tracks.state[now + 1]))
    is_told = tracks.is_told[now + 1] & tracks.present[now] & tracks.present[now + 1]
    move = (reached.position - goal.position) / scale.move
    turn = vector_from_rotation(reached.rotation @ goal.rotation.mT) / scale.turn
    return {
        "hand_state": torch.from_numpy(tracks.state[now]),
        "goal": state_to_vector(goal),
        "lag": torch.cat([move, turn], -1),
        "is_told": torch.from_numpy(is_told.astype(np.float32)),
    }


def has_things(tracks: HandTracks) -> np.ndarray:
    """Positions of the frames whose object and target are recorded and which show a hand."""
    return np.flatnonzero(np.isfinite(tracks.places).all((1, 2)) & tracks.present.any(1))


def thing_labels(store: FrameStore, tracks: HandTracks, now: np.ndarray, rng: np.random.Generator) -> dict[str, Tensor]:
    """The frames `now` [M], some in a mirror, some blurred and noisy, as dreams are: thing_rgbd [M, 4, h, w],
    thing_intrinsics [M, 4], thing_hands bool [M, 2] with their thing_points [M, 2, 21, 3], and thing_places [M, 2, 3]
    of object and target, in camera axes; thing_cell long [M, 2] (of the head's grid) and thing_seen [M, 2] (whether
    they lie in the view); thing_touch [M, 3]; task long [M] with task_reward and task_success [M]."""
    pose, intrinsics = torch.from_numpy(store.pose[now]), torch.from_numpy(store.intrinsics[now]).clone()
    limbs, rgbd = tracks.limbs(now, pose), dreamlike(store.rgbd(now), rng)
    points = (limbs.keypoints - pose[:, None, None, :3, 3]) @ pose[:, None, :3, :3]
    places = (torch.from_numpy(tracks.places[now]) - pose[:, None, :3, 3]) @ pose[:, :3, :3]
    is_mirrored = torch.from_numpy(rng.random(len(now)) < 0.5)
    sign = torch.where(is_mirrored, -1.0, 1.0)
    places[..., 0] *= sign[:, None]
    points[..., 0] *= sign[:, None, None]
    intrinsics[:, 2] = torch.where(is_mirrored, 1.0 - intrinsics[:, 2], intrinsics[:, 2])
    cell, seen = _cells(places, intrinsics, rgbd.shape[-1] // THING_CELL)
    return {
        "thing_rgbd": torch.where(is_mirrored[:, None, None, None], rgbd.flip(-1), rgbd),
        "thing_points": torch.where(is_mirrored[:, None, None, None], points.flip(1), points),
        "thing_hands": torch.where(is_mirrored[:, None], limbs.present.flip(1), limbs.present),
        "thing_intrinsics": intrinsics,
        "thing_places": places,
        "thing_seen": seen,
        "thing_cell": cell,
        "thing_touch": torch.from_numpy(tracks.touch[now]),
        "task": torch.from_numpy(tracks.task[now]),
        "task_reward": torch.from_numpy(store.reward[now]),
        "task_success": torch.from_numpy(store.success[now]),
    }


def _cells(places: Tensor, intrinsics: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """Places [M, 2, 3] in camera axes -> the cell of a grid of `side` x `side` that each is in, long [M, 2] (the
    nearest, of what is outside), and whether it lies in the view, 0 or 1."""
    x, y, z = places.unbind(-1)
    fx, fy, cx, cy = intrinsics[:, None].unbind(-1)
    ahead = z.clamp_min(MIN_DEPTH)
    column, row = x / ahead * fx + cx, y / ahead * fy + cy
    seen = (z > MIN_DEPTH) & (column > 0) & (column < 1) & (row > 0) & (row < 1)
    column, row = ((place * side).long().clamp(0, side - 1) for place in (column, row))
    return row * side + column, seen.float()


def dreamlike(rgbd: Tensor, rng: np.random.Generator) -> Tensor:
    """Pictures [M, 4, h, w] in light of another colour, half of them blurred and noisy by shares drawn for each."""
    drawn = np.maximum(rng.uniform(-1.0, 1.0, (2, len(rgbd))), 0.0)
    blurred, noise = (torch.from_numpy(part.astype(np.float32)) for part in drawn)
    grain = torch.from_numpy(rng.standard_normal(rgbd.shape, np.float32))
    light = torch.ones(len(rgbd), 4, 1, 1)
    light[:, :3] += torch.from_numpy(rng.uniform(-LIGHT, LIGHT, (len(rgbd), 3, 1, 1)).astype(np.float32))
    seen = blur(rgbd, blurred) + NOISE * noise[:, None, None, None] * grain
    return ((seen + 1.0) * light - 1.0).clamp(-1.0, 1.0)


def hand_losses(heads: Heads, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """Loss of the wrist head, and what is logged beside it: wrist_error (mean distance of the predicted wrist from the
    true one, in steps) and kinematic_error (without the head)."""
    assert heads.wrist is not None
    features, latent, told = batch["features"], batch["latent"], batch["is_told"]
    lag = heads.wrist(features, latent, batch["hand_state"], batch["goal"]).float()
    missed = F.smooth_l1_loss(lag, batch["lag"], reduction="none", beta=0.1).mean(-1)
    return {
        "wrist": _mean(missed, told),
        "wrist_error": _mean((lag - batch["lag"])[..., :3].norm(dim=-1), told).detach(),
        "kinematic_error": _mean(batch["lag"][..., :3].norm(dim=-1), told).detach(),
    }


def thing_losses(heads: Heads, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """Loss of the things head: which cell each is in, where in that cell, and touch; and beside it object_error and
    target_error (metres), touch_error (share of wrong flags), reward_error, and recall and precision of success."""
    assert heads.things is not None
    seen, true = batch["thing_seen"], batch["thing_places"]
    view = (batch["thing_points"], batch["thing_hands"], batch["thing_intrinsics"])
    maps = heads.things.look(batch["thing_rgbd"], *view)
    cell = batch["thing_cell"][..., None]
    miss = maps.points.gather(2, cell[..., None].expand(-1, -1, -1, 3))[:, :, 0] - true
    found = F.cross_entropy(maps.heat.flatten(0, 1), cell.flatten(), reduction="none").view_as(seen)
    located = F.smooth_l1_loss(miss / LOCATED, torch.zeros_like(miss), reduction="none").sum(-1)
    spread = maps.spread.gather(2, cell)[..., 0]
    unsure = miss.detach().norm(dim=-1) / spread + spread.log()
    touch = F.binary_cross_entropy_with_logits(maps.touch.float(), batch["thing_touch"])
    return {
        "things": _mean(found + located + SPREAD_WEIGHT * unsure, seen) + touch,
        **_judged(heads.things, view, batch),
    }


@torch.no_grad()
def _judged(head: ThingsHead, view: tuple[Tensor, Tensor, Tensor], batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """How far off things are, and how well the rewards that follow from them agree with those recorded, as if all had
    been lifted before."""
    things = head(batch["thing_rgbd"], *view)
    error = (torch.stack([things.object, things.target], 1) - batch["thing_places"]).norm(dim=-1)
    wrong = (things.touch > 0) != (batch["thing_touch"] > 0.5)
    tip, palm = fingertip_and_palm(batch["thing_points"], batch["thing_hands"])
    touch = Touch(*things.touch.sigmoid().unbind(1))
    worth = judge(Facts(tip, palm, things.object, things.target, touch, torch.ones_like(touch.lifted)))
    own = batch["task"].clamp(0, len(HAND_TASKS) - 1)[:, None]
    reward, success = (part.gather(1, own)[:, 0] for part in worth)
    counts = (batch["task"] != NO_TASK).float()
    says = (success > 0.5).float() * counts
    return {
        "object_error": _mean(error[:, 0], batch["thing_seen"][:, 0]),
        "target_error": _mean(error[:, 1], batch["thing_seen"][:, 1]),
        "touch_error": wrong.float().mean(),
        "reward_error": _mean((reward - batch["task_reward"]).abs(), counts),
        "success_recall": _mean(says, batch["task_success"] * counts),
        "success_precision": _mean(batch["task_success"], says),
    }


def _mean(values: Tensor, weight: Tensor) -> Tensor:
    """Weighted mean; 0 where the weights are."""
    return (values * weight).sum() / weight.sum().clamp_min(1)
