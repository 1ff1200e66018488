"""What the heads of hands learn from recordings: by how much wrists miss their goals, and what a frame is worth."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from worldscape.conditioning.hands import (
    HandScale,
    apply_hand_action,
    state_from_vector,
    state_to_vector,
    vector_from_rotation,
)
from worldscape.data.clips import FrameStore
from worldscape.data.hand_tracks import HandTracks
from worldscape.heads import HAND_TASKS, Heads, TaskValues


def hand_labels(store: FrameStore, tracks: HandTracks, now: np.ndarray, scale: HandScale) -> dict[str, Tensor]:
    """What followed the frames `now` [B], each with a successor: hand_state and goal [B, 2, 16], lag [B, 2, 6] in steps
    of `scale`, is_told [B, 2] (whether they count); and what each frame was worth to its task: task long [B] (NO_TASK
    without), task_reward and task_success [B]."""
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
        "task": torch.from_numpy(tracks.task[now]),
        "task_reward": torch.from_numpy(store.reward[now]),
        "task_success": torch.from_numpy(store.success[now]),
    }


def hand_losses(heads: Heads, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """Losses of the wrist head and of the task head, and what is logged beside them: wrist_error (mean distance of the
    predicted wrist from the true one, in steps; kinematic_error: without the head), recall and precision of success.
    """
    assert heads.wrist is not None and heads.tasks is not None
    features, latent, told = batch["features"], batch["latent"], batch["is_told"]
    lag = heads.wrist(features, latent, batch["hand_state"], batch["goal"]).float()
    missed = F.smooth_l1_loss(lag, batch["lag"], reduction="none", beta=0.1).mean(-1)
    values, has_task = _of_task(heads.tasks(features, latent), batch["task"])
    reward = F.binary_cross_entropy_with_logits(values.reward, batch["task_reward"].clamp(0, 1), reduction="none")
    success = F.binary_cross_entropy_with_logits(values.success, batch["task_success"], reduction="none")
    says = (values.success > 0).float() * has_task
    return {
        "wrist": _mean(missed, told),
        "task": _mean(reward + success, has_task),
        "wrist_error": _mean((lag - batch["lag"])[..., :3].norm(dim=-1), told).detach(),
        "kinematic_error": _mean(batch["lag"][..., :3].norm(dim=-1), told).detach(),
        "success_recall": _mean(says, batch["task_success"] * has_task).detach(),
        "success_precision": _mean(batch["task_success"], says).detach(),
    }


def _of_task(values: TaskValues, task: Tensor) -> tuple[TaskValues, Tensor]:
    """The logits [B] of each frame's own task, and whether it has one, as 0 or 1."""
    own = task.clamp(0, len(HAND_TASKS) - 1)[:, None]
    picked = TaskValues(*(part.float().gather(1, own)[:, 0] for part in values))
    return picked, (task >= 0).float()


def _mean(values: Tensor, weight: Tensor) -> Tensor:
    """Weighted mean; 0 where the weights are."""
    return (values * weight).sum() / weight.sum().clamp_min(1)
