"""Stable-Baselines3 adapter: the vector environment as a `VecEnv`, all slots in one model, no processes.

Needs the extra `sb3`: pip install "worldscape[sb3]".
"""

from __future__ import annotations

import copy
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode

from ws_gym.vector_env import WorldScapeVectorEnv

try:
    from stable_baselines3.common.vec_env import VecEnv
    from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, VecEnvStepReturn
except ImportError as error:
    raise ImportError("ws_gym.sb3 needs Stable-Baselines3: pip install 'worldscape[sb3]'") from error

FINAL = ("final_obs", "final_info")
FIXED = ("autoreset_mode", "output", "num_envs")


def make_vec_env(
    env_id: str = "WorldScape-Nav-v0", n_envs: int = 1, seed: int | None = None, **options: Any
) -> WorldScapeVecEnv:
    """`n_envs` slots as a VecEnv; `options` are those of `gym.make_vec`, and slot i is seeded with `seed` + i."""
    fixed = sorted(set(options) & set(FIXED))
    if fixed:
        raise ValueError(
            f"{', '.join(fixed)} cannot be chosen here: SB3 needs same-step autoreset in NumPy and n_envs."
        )
    env = gym.make_vec(env_id, num_envs=n_envs, autoreset_mode="SAME_STEP", **options)
    vec_env = WorldScapeVecEnv(env)
    if seed is not None:
        vec_env.seed(seed)
    return vec_env


class WorldScapeVecEnv(VecEnv):
    """A same-step `WorldScapeVectorEnv` for SB3. What differs from the Gymnasium vector environment:

    - `step` returns (observations, rewards, dones, infos); `dones` is terminated or truncated, and
      `infos[i]["TimeLimit.truncated"]` says that it was a limit only, of steps or of drift.
    - infos are a list of dicts, one per slot. When a slot's episode ends, its info is that of the last step, with the
      last observation under `terminal_observation`; the new episode's first info is in `reset_infos[i]`.
    - `reset()` takes no arguments: `seed()` and `set_options()` set what the next reset uses, once.
    - `get_attr`, `set_attr` and `env_method` reach the one vector environment that all slots share, so they return one
      value repeated, and `set_attr` takes no part of the slots.
    - `env_is_wrapped` is always False: slots are not environments of their own. Use `VecMonitor`, not `Monitor`.
    """

    def __init__(self, env: gym.vector.VectorEnv) -> None:
        if not isinstance(env, WorldScapeVectorEnv):
            raise ValueError(f"{env} is no WorldScapeVectorEnv; for other environments use SB3's own make_vec_env.")
        if env.autoreset_mode is not AutoresetMode.SAME_STEP or env.output != "numpy":
            raise ValueError("SB3 needs autoreset_mode='SAME_STEP' and output='numpy'; use ws_gym.sb3.make_vec_env.")
        self.env = env  # before super().__init__, which asks for render_mode
        self._actions: Any = None
        super().__init__(env.num_envs, env.single_observation_space, env.single_action_space)
        self.metadata = {**self.metadata, "render_fps": env.metadata["render_fps"]}  # VecVideoRecorder's speed

    def reset(self) -> np.ndarray:
        """Open new worlds -> observations [n, ...]; infos are in `reset_infos`."""
        observations = self._reset_alone() if any(self._options) else self._reset_together()
        self._reset_seeds()
        self._reset_options()
        return observations

    def step_async(self, actions: np.ndarray) -> None:
        self._actions = actions

    def step_wait(self) -> VecEnvStepReturn:
        observations, rewards, terminated, truncated, infos = self.env.step(self._actions)
        dones = terminated | truncated
        rows = _split(infos, self.num_envs)
        for row in np.flatnonzero(dones).tolist():
            self.reset_infos[row] = rows[row]
            rows[row] = _row(infos["final_info"], row)
            rows[row]["terminal_observation"] = infos["final_obs"][row]
        for row, info in enumerate(rows):
            info["TimeLimit.truncated"] = bool(truncated[row] and not terminated[row])
        return observations, rewards, dones, rows

    def close(self) -> None:
        self.env.close()

    def get_images(self) -> list[np.ndarray | None]:
        """One frame per slot; None without `render_mode="rgb_array"`."""
        frames = self.env.render()
        return [None] * self.num_envs if frames is None else list(frames)

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """The shared environment's attribute, once per slot; spaces are those of one slot."""
        name = f"single_{attr_name}" if attr_name in ("observation_space", "action_space") else attr_name
        return [getattr(self.env, name) for _ in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """Set an attribute of the shared environment; raises ValueError for a part of the slots."""
        if set(self._get_indices(indices)) != set(range(self.num_envs)):
            raise ValueError(f"{attr_name} belongs to all slots together; set it without `indices`.")
        setattr(self.env, attr_name, value)

    def env_method(
        self, method_name: str, *method_args: Any, indices: VecEnvIndices = None, **method_kwargs: Any
    ) -> list:
        """Call a method of the shared environment once; its result is repeated for each slot."""
        result = getattr(self.env, method_name)(*method_args, **method_kwargs)
        return [copy.copy(result) for _ in self._get_indices(indices)]

    def env_is_wrapped(self, wrapper_class: type[gym.Wrapper], indices: VecEnvIndices = None) -> list[bool]:
        """Always False."""
        return [False for _ in self._get_indices(indices)]

    def _reset_together(self) -> np.ndarray:
        observations, infos = self.env.reset(seed=self._seeds)
        self.reset_infos = _split(infos, self.num_envs)
        return observations

    def _reset_alone(self) -> np.ndarray:
        """Slot by slot, because each may have options of its own."""
        observations = np.empty(0)
        for row, options in enumerate(self._options):
            mask = np.arange(self.num_envs) == row
            observations, infos = self.env.reset(seed=self._seeds, options={**options, "reset_mask": mask})
            self.reset_infos[row] = _row(infos, row)
        return observations


def _split(infos: dict[str, Any], num_rows: int) -> list[dict[str, Any]]:
    return [_row(infos, row) for row in range(num_rows)]


def _row(infos: dict[str, Any], row: int) -> dict[str, Any]:
    """One slot's info out of Gymnasium's vector infos, without the final ones and the masks."""
    masks = {f"_{name}" for name in infos}
    return {name: _pick(infos[name], row) for name in infos if name not in masks and name not in FINAL}


def _pick(value: Any, row: int) -> Any:
    if isinstance(value, dict):
        return _row(value, row)
    return value[row].copy() if value.ndim > 1 else value[row].item()
