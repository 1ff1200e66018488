"""Action spaces of worlds with hands: hands alone, or camera and hands in one flat Box.

Finite numbers outside a Box are clipped, as in the simulator; NaN and infinity are errors.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from einops import rearrange
from gymnasium import spaces
from torch import Tensor

from worldscape.conditioning.hand_model import HandState
from worldscape.conditioning.hand_poses import (
    EGODEX_ACTION_WIDTH,
    KEYPOINT_ACTION_WIDTH,
    keypoints_from_action,
    state_from_keypoints,
    states_from_egodex,
)
from worldscape.conditioning.hands import (
    ACTION_WIDTHS,
    CURLS,
    HAND_ACTION_WIDTH,
    HANDS,
    action_between,
    state_from_vector,
    to_delta,
)
from worldscape.config import WorldConfig
from ws_gym.actions import AXES, ActionMode, ContinuousCamera, make_action_mode
from ws_gym.options import WorldOptions

FARTHEST = 1.0
"""Metres along each axis that an absolute hand action can name."""

KEYS = {"w": (2, 1), "s": (2, -1), "d": (0, 1), "a": (0, -1), "f": (1, 1), "r": (1, -1)}
"""Letter -> number of the wrist's move and its sign: ahead, back, right, left, down, up."""
GRASP, RELEASE = "g", "h"


class HandActions(ActionMode):
    """`Box` of the camera's four numbers (with `universal` only), then each hand's, the left one first.

    `kind` says what a hand's numbers are: "delta", 13 changes in [-1, 1] (`HandScale`); "grasp", 4 of them: three that
    move the wrist and one that closes the hand; "keypoints", 63 metres, where
    its keypoints shall be; "egodex", 48 numbers for both hands together, of which those of hands that are not there
    are ignored. The last two name places in the workspace, and a step goes towards them as far as it can.
    """

    name = "hands"
    space: spaces.Box

    def __init__(self, config: WorldConfig, hands: str, kind: str, *, universal: bool) -> None:
        super().__init__(config.controls)
        self.rows, self.kind, self.hand_scale = HANDS[hands], kind, config.hands
        self.camera = ContinuousCamera(config.controls) if universal else None
        limits = np.concatenate([np.ones(len(AXES) if universal else 0), hand_limits(kind, len(self.rows))])
        self.space = spaces.Box(-limits.astype(np.float32), limits.astype(np.float32))

    def to_hands(self, actions: Any, active: np.ndarray, command: Tensor) -> Tensor:
        """As ActionMode.to_hands; slots that are not active, and hands that are not there, keep still."""
        numbers = np.where(active[:, None], self._validated(self._of_slots(actions, active), active), 0.0)
        own = numbers[:, len(AXES) if self.camera else 0 :].astype(np.float32)
        moved = torch.zeros(*command.shape[:2], HAND_ACTION_WIDTH, device=command.device)
        if self.kind in ACTION_WIDTHS:
            changes = to_delta(rearrange(own, "b (hands a) -> b hands a", a=ACTION_WIDTHS[self.kind]))
            moved[:, list(self.rows)] = torch.from_numpy(changes).to(command.device)
        else:
            chosen = torch.as_tensor(active, device=command.device)
            moved[chosen] = self._towards(torch.from_numpy(own).to(command.device)[chosen], command[chosen])
        return moved

    def _towards(self, places: Tensor, command: Tensor) -> Tensor:
        """Absolute actions [N, ...] -> delta actions [N, 2, 13] from where the hands were told to be [N, 2, 16]."""
        rows = list(self.rows)
        if self.kind == "egodex":
            goal = HandState(*(part[:, rows] for part in states_from_egodex(places)))
        else:
            keypoints = keypoints_from_action(rearrange(places, "n (hands k) -> n hands k", hands=len(rows)))
            goal = state_from_keypoints(keypoints, torch.tensor([row == 0 for row in rows], device=places.device))
        moved = torch.zeros(*command.shape[:2], HAND_ACTION_WIDTH, device=command.device)
        moved[:, rows] = action_between(state_from_vector(command[:, rows]), goal, self.hand_scale)
        return moved

    def keys_to_action(self) -> dict[tuple[int, ...], np.ndarray]:
        """W A S D move the last hand over the table, R and F up and down, G closes it, H opens it (of changes only)."""
        if self.kind not in ACTION_WIDTHS:
            return {}
        width, actions = ACTION_WIDTHS[self.kind], {}
        closing = CURLS if self.kind == "delta" else slice(3, None)
        for letter in (*KEYS, GRASP, RELEASE):
            numbers = np.zeros(width, np.float32)
            if letter in KEYS:
                place, sign = KEYS[letter]
                numbers[place] = sign
            else:
                numbers[closing] = 1.0 if letter == GRASP else -1.0
            rest = np.zeros(len(self.space.low) - width, np.float32)
            actions[(ord(letter),)] = np.concatenate([rest, numbers])
        return actions

    def _validated(self, actions: np.ndarray, active: np.ndarray | None = None) -> np.ndarray:
        wrong = ~np.isfinite(actions if active is None else actions[active])
        if wrong.any():
            raise ValueError(f"an action holds NaN or infinity; every number of {self.space.shape} must be finite.")
        return np.clip(actions, self.space.low, self.space.high)

    def _convert(self, actions: np.ndarray) -> np.ndarray:
        if self.camera is None:
            return np.zeros((len(actions), self.table.shape[1]), np.float32)
        return self.camera.combine(actions[:, : len(AXES)])


def hand_limits(kind: str, num_hands: int) -> np.ndarray:
    """Largest size of each number of a hand action."""
    if kind in ACTION_WIDTHS:
        return np.ones(ACTION_WIDTHS[kind] * num_hands)
    if kind == "keypoints":
        return np.full(KEYPOINT_ACTION_WIDTH * num_hands, FARTHEST)
    return np.full(EGODEX_ACTION_WIDTH, FARTHEST)


def choose_action_mode(options: WorldOptions, config: WorldConfig) -> ActionMode:
    """The action mode that options ask for, with the step sizes that a world was trained with."""
    if options.hands is None:
        return make_action_mode(options.actions, config.controls)
    return HandActions(config, options.hands, options.hand_actions, universal=options.actions == "universal")
