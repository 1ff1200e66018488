"""Running an env for one episode and collecting what it shows, for the recorder.

The content of an episode is a pure function of (env, its kwargs, policy, seed, number of steps).
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from worldscape.data.episode import FRAME_INFOS, MAX_DEPTH, SPARSE_INFOS, STEP_INFOS
from worldscape.data.infos import INFOS, check_infos
from worldscape.data.minari_io import find_image_key

if TYPE_CHECKING:
    from minari.data_collector import EpisodeBuffer

Act: TypeAlias = Callable[[Any, dict[str, Any]], Any]
"""Called with the latest observation and info; returns the next action."""

Policy: TypeAlias = Callable[[gym.Env, np.random.Generator], Act]
"""Called with the unwrapped env and a generator after each reset."""

WALKERS = "worldscape.data.explore"
"""Module whose `POLICIES` serve envs that do not name their own in an attribute `policies`."""

_POLICY_STREAM = 1


def make_env(env_id: str, env_kwargs: dict[str, Any]) -> gym.Env:
    """Make the env; raises ValueError when it is unknown, refuses its arguments or does not show one image."""
    if importlib.util.find_spec("ws_gym") is not None:
        importlib.import_module("ws_gym")
    try:
        env = gym.make(env_id, disable_env_checker=True, **env_kwargs)
    except (gym.error.Error, TypeError) as error:
        raise ValueError(f"cannot make the env {env_id!r} with {env_kwargs}: {error}") from error
    except ImportError as error:
        raise ValueError(
            f"cannot make the env {env_id!r}: {error}; install what it needs (for our simulators: "
            "pip install 'worldscape[sim]')"
        ) from error
    try:
        find_image_key(env.observation_space)
    except ValueError:
        env.close()
        raise
    return env


def load_policy(name: str, env: gym.Env) -> Policy:
    """The policy called `name`: random, one of the env's own, or MODULE:FUNC; raises ValueError otherwise.

    An env's own are the `POLICIES` (a dict) of the module that its attribute `policies` names, else those of `WALKERS`.
    """
    if name == "random":
        return _random_policy
    module_name, _, function = name.partition(":")
    if not function:
        return _own_policy(name, env)
    try:
        policy = getattr(importlib.import_module(module_name), function)
    except (ModuleNotFoundError, AttributeError) as error:
        raise ValueError(f"cannot load the policy {name!r}: {error}; give MODULE:FUNC that can be imported") from error
    if not callable(policy):
        raise ValueError(f"the policy {name!r} is a {type(policy).__name__}; it must be a function of (env, rng)")
    return cast(Policy, policy)


def _own_policy(name: str, env: gym.Env) -> Policy:
    own = importlib.import_module(getattr(env.unwrapped, "policies", WALKERS)).POLICIES
    if name not in own:
        raise ValueError(f"unknown policy {name!r}; choose {', '.join(own)}, random or MODULE:FUNC")
    return own[name]


def _random_policy(env: gym.Env, rng: np.random.Generator) -> Act:
    env.action_space.seed(int(rng.integers(2**31)))
    return lambda observation, info: env.action_space.sample()


def roll_episode(env: gym.Env, policy: Policy, *, seed: int, num_steps: int, index: int) -> EpisodeBuffer:
    """Record one episode of at most `num_steps` steps; it ends early when the env does.

    `seed` resets the env and seeds the policy. A cut at `num_steps` is marked as truncation, as Minari does.
    Raises ValueError when an observation is outside the space, an info is not as `infos.INFOS` says, or one comes and
    goes; one of `SPARSE_INFOS` that comes at all is False in the other steps.
    """
    from minari.data_collector import EpisodeBuffer

    observation, info = env.reset(seed=seed)
    log = _EpisodeLog(env.observation_space, observation, info)
    act = policy(env.unwrapped, np.random.default_rng((seed, _POLICY_STREAM)))
    for step in range(num_steps):
        action = act(observation, info)
        if not env.action_space.contains(action):
            raise ValueError(f"the policy chose {action!r}, which is outside the action space {env.action_space}")
        observation, reward, terminated, truncated, info = env.step(action)
        truncated = truncated or (step + 1 == num_steps and not terminated)
        log.add_step(action, float(reward), terminated, truncated, observation, info)
        if terminated or truncated:
            break
    return EpisodeBuffer(
        id=index,
        seed=seed,
        observations=_stack(env.observation_space, log.observations),
        actions=_stack(env.action_space, log.actions),
        rewards=log.rewards,
        terminations=log.terminations,
        truncations=log.truncations,
        infos=log.stacked_infos(),
    )


class _EpisodeLog:
    """Lists that grow with the episode. Infos: of frames those that reset offers, of steps those of the first, and
    the sparse ones that any step offers."""

    def __init__(self, space: spaces.Space, observation: Any, info: dict[str, Any]) -> None:
        self.space = space
        self.observations = [self._checked(observation)]
        self.actions: list[Any] = []
        self.rewards: list[float] = []
        self.terminations: list[bool] = []
        self.truncations: list[bool] = []
        image_key = find_image_key(space)
        image = observation if image_key is None else observation[image_key]
        self._picture: tuple[int, int] = image.shape[:2]
        self._infos = {key: [self._as_stored(key, info[key])] for key in FRAME_INFOS if key in info}
        self._flags = {key: [False] for key in SPARSE_INFOS}
        self._offered: set[str] = set()

    def add_step(
        self, action: Any, reward: float, terminated: bool, truncated: bool, observation: Any, info: dict[str, Any]
    ) -> None:
        self.actions.append(action)
        self.rewards.append(reward)
        self.terminations.append(bool(terminated))
        self.truncations.append(bool(truncated))
        self.observations.append(self._checked(observation))
        if len(self.rewards) == 1:
            self._start_infos(info)
        self._add_info(info)

    def stacked_infos(self) -> dict[str, Any]:
        """Infos as Minari writes them: arrays, except that scalars are lists."""
        stacked = {key: np.stack(values) for key, values in self._infos.items()}
        if "intrinsics" in stacked and np.ptp(stacked["intrinsics"], axis=0).any():
            raise ValueError("info 'intrinsics' changes within an episode; record with a camera that does not zoom")
        infos = {key: value.tolist() if value.ndim == 1 else value for key, value in stacked.items()}
        return infos | {key: values for key, values in self._flags.items() if key in self._offered}

    def _start_infos(self, info: dict[str, Any]) -> None:
        for key in FRAME_INFOS:
            if (key in info) != (key in self._infos):
                where, other = ("step", "reset") if key in info else ("reset", "step")
                raise ValueError(f"the env's info has {key!r} at {where} but not at {other}; it must be in both")
        for key in STEP_INFOS:
            if key in info and key not in SPARSE_INFOS:
                self._infos[key] = [np.zeros_like(self._as_stored(key, info[key]))]

    def _add_info(self, info: dict[str, Any]) -> None:
        step = len(self.rewards)
        for key in (*FRAME_INFOS, *STEP_INFOS):
            if key in SPARSE_INFOS:
                self._add_flag(key, info)
            elif (key in info) != (key in self._infos):
                verb = "lost" if key in self._infos else "has only now"
                raise ValueError(f"the env's info {verb} {key!r} at step {step}; it must be in every step or in none")
            elif key in info:
                self._infos[key].append(self._as_stored(key, info[key]))

    def _add_flag(self, key: str, info: dict[str, Any]) -> None:
        if key in info:
            self._offered.add(key)
        self._flags[key].append(key in info and bool(self._as_stored(key, info[key])))

    def _as_stored(self, key: str, value: Any) -> np.ndarray:
        return as_stored(key, value, self._picture)

    def _checked(self, observation: Any) -> Any:
        if not self.space.contains(observation):
            kind = f"{observation.dtype} {observation.shape}" if isinstance(observation, np.ndarray) else observation
            raise ValueError(f"the env returned the observation {kind}, outside its own observation space {self.space}")
        return _copy(observation)


def _copy(observation: Any) -> Any:
    """Envs may reuse their arrays; what is logged must not change."""
    if isinstance(observation, dict):
        return {key: _copy(value) for key, value in observation.items()}
    if isinstance(observation, tuple):
        return tuple(_copy(value) for value in observation)
    return np.array(observation) if isinstance(observation, np.ndarray) else observation


_FLAGS = ("collision", "success", "hand_present", "hand_visible", "contact", "grasped", "lifted")
_STORED_TYPES = {"depth": np.float16, "task_id": np.int64, **dict.fromkeys(_FLAGS, np.bool_)}


def as_stored(key: str, value: Any, picture: tuple[int, int]) -> np.ndarray:
    """Info as kept on disk: depth in float16 up to `MAX_DEPTH`, flags as bool, the rest in float32. picture: (h, w).

    Raises ValueError for what is not as `infos.INFOS` says; depth may be infinite.
    """
    try:
        array = np.asarray(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"info {key!r} is no array ({error}); it must be numbers: {INFOS[key].words}") from error
    if key == "depth" and array.dtype.kind in "iuf":
        array = np.minimum(array, MAX_DEPTH)
    check_infos(key, array[None], picture)
    return array.astype(_STORED_TYPES.get(key, np.float32))


def _stack(space: spaces.Space, values: list[Any]) -> Any:
    """List of samples of `space` -> one sample of lists and arrays, as Minari's buffers hold them."""
    if isinstance(space, spaces.Dict):
        return {key: _stack(subspace, [value[key] for value in values]) for key, subspace in space.items()}
    if isinstance(space, spaces.Tuple):
        return tuple(_stack(subspace, [value[i] for value in values]) for i, subspace in enumerate(space))
    return np.stack(values) if isinstance(values[0], np.ndarray) else values
