"""A toy simulator and its perfect dream: a seeded picture that every action shifts by its own number of pixels."""

from typing import Any

import gymnasium as gym
import numpy as np
import torch

from worldscape.conditioning.camera import pose_from_state_numpy
from worldscape.conditioning.controls import ControlScale, discrete_controls
from worldscape.engine_frames import EngineFrame, Start
from worldscape.evaluate.dream import SEEDS_APART

SIZE, LIMIT = 32, 3
SCALE = ControlScale()
UNIT = np.array([SCALE.move, 1, SCALE.move, SCALE.yaw, SCALE.pitch, 1], np.float32)


def draw_texture(seed: int) -> np.ndarray:
    """uint8 [48, 96, 3]: coarse random blocks, so that a shift by some pixels is visible."""
    blocks = np.random.default_rng(seed).integers(0, 256, (12, 24, 3), dtype=np.uint8)
    return blocks.repeat(4, axis=0).repeat(4, axis=1)


def draw_frame(texture: np.ndarray, state: np.ndarray) -> np.ndarray:
    """Texture and camera state [6] -> uint8 [32, 32, 3]: turns shift by 7 columns, steps by 2, looks by 5 rows."""
    x, _, z, yaw, pitch, _ = np.round(state / UNIT).astype(int)
    shifted = np.roll(texture, (5 * pitch + 2 * z, -7 * yaw - 2 * x), axis=(0, 1))
    return shifted[:SIZE, :SIZE].copy()


def move(state: np.ndarray, control: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """State after a control along the world's axes, and the realised control: nothing beyond LIMIT steps or looks."""
    after = state + control
    refused = np.abs(np.round(after / UNIT))[[0, 2, 4]].max() > LIMIT
    return (state, np.zeros_like(control)) if refused else (after, control)


class PanoramaEnv(gym.Env):
    """The toy simulator, with the `info` of WorldScape-Rooms."""

    def __init__(self) -> None:
        self.action_space = gym.spaces.Discrete(9)
        self.observation_space = gym.spaces.Box(0, 255, (SIZE, SIZE, 3), np.uint8)
        self.controls = discrete_controls(SCALE)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        super().reset(seed=seed)
        self.texture, self.state = draw_texture(seed or 0), np.zeros(6, np.float32)
        return self._observe(np.zeros(6, np.float32), False)

    def step(self, action: int):
        self.state, realised = move(self.state, self.controls[action])
        observation, info = self._observe(realised, bool(np.abs(self.controls[action] - realised).max() > 0))
        return observation, 0.0, False, False, info

    def _observe(self, realised: np.ndarray, collision: bool):
        info = {
            "depth": np.full((SIZE, SIZE), 4.0, np.float32),
            "pose": pose_from_state_numpy(self.state),
            "intrinsics": np.array([0.6, 0.6, 0.5, 0.5], np.float32),
            "realised": realised,
            "collision": collision,
            "success": False,
        }
        return draw_frame(self.texture, self.state), info


def random_keys(env: gym.Env, rng: np.random.Generator):
    """Policy: any key."""
    return lambda observation, info: int(rng.integers(9))


class PerfectEngine:
    """Dreams exactly what PanoramaEnv shows. Counts the frames it made."""

    action_latency = 0

    def __init__(self, num_slots: int) -> None:
        self.num_slots, self.num_frames = num_slots, 0

    def open(self, start: Start, seeds: torch.Tensor, rows: torch.Tensor | None = None):
        assert start.pose is not None
        pose = start.pose[:, -1].numpy()
        yaw, pitch = np.arctan2(pose[:, 0, 2], pose[:, 2, 2]), np.arcsin(-pose[:, 1, 2])
        zero = np.zeros_like(yaw)
        self.states = np.stack([pose[:, 0, 3], zero, pose[:, 2, 3], yaw, pitch, zero], axis=1)
        self.textures = [draw_texture(seed % SEEDS_APART) for seed in seeds.tolist()]  # whatever the draw
        return self._frame(np.zeros((self.num_slots, 6), np.float32))

    def step(self, controls: torch.Tensor, active: torch.Tensor | None = None, *, hands=None, is_realised=False):
        moved = [move(state, control) for state, control in zip(self.states, controls.numpy(), strict=True)]
        self.states = np.stack([state for state, _ in moved])
        return self._frame(np.stack([realised for _, realised in moved]))

    def _frame(self, realised: np.ndarray):
        self.num_frames += self.num_slots
        frames = [draw_frame(texture, state) for texture, state in zip(self.textures, self.states, strict=True)]
        none = torch.zeros(self.num_slots)
        made = EngineFrame(
            rgbd=torch.zeros(self.num_slots, 4, SIZE, SIZE),
            pose=torch.from_numpy(pose_from_state_numpy(self.states)),
            camera=torch.from_numpy(self.states),
            commanded=torch.from_numpy(realised),
            realised=torch.from_numpy(realised),
            coverage=none,
            latent=none[:, None, None],
            steps=none.long(),
            model_calls=1,
        )
        made.frame = torch.from_numpy(np.stack(frames))
        made.depth = torch.full((self.num_slots, SIZE, SIZE), 4.0)
        return made


class CopyEngine(PerfectEngine):
    """Shows its start frame forever."""

    def step(self, controls: torch.Tensor, active: torch.Tensor | None = None, *, hands=None, is_realised=False):
        return self._frame(np.zeros((self.num_slots, 6), np.float32))


class FoggyEngine(PerfectEngine):
    """A dream that fades: every step blends further towards grey."""

    def step(self, controls: torch.Tensor, active: torch.Tensor | None = None, *, hands=None, is_realised=False):
        made = super().step(controls, active)
        clear = max(0.0, 1 - self.num_frames / self.num_slots / 60)
        made.frame = (made.frame * clear + 128 * (1 - clear)).to(torch.uint8)
        return made
