"""Many dreamed worlds stepped together in one model: Gymnasium's vector conventions around a `WorldCore`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from gymnasium.error import ResetNeeded
from gymnasium.utils import seeding
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from torch import Tensor

from worldscape.snapshot import Snapshot
from ws_gym.batch import Batch, map_observation
from ws_gym.core import WorldCore
from ws_gym.maps import draw_map
from ws_gym.options import WorldOptions, check_seed, is_whole
from ws_gym.rendering import ARRAY_MODES, RENDER_FPS, check_render_mode, enlarge

OUTPUTS = ("numpy", "torch")


class WorldScapeVectorEnv(VectorEnv[Any, Any, Any]):
    """`num_envs` worlds of `WorldScapeEnv` in one model, each with its own start, episode length and memory.

    ## Description
    Slot i seeded with s + i dreams what `WorldScapeEnv` seeded with s + i dreams, on a CPU to the last bit.

    ## Action Space
    `WorldScapeEnv`'s, batched.

    ## Observation Space
    `Box(0, 255, (num_envs, height, width, 3), uint8)`, or what else `obs=` names, batched.

    ## Rewards
    As in `WorldScapeEnv`, float32 [num_envs].

    ## Starting State
    As in `WorldScapeEnv`. `reset(seed=s)` seeds slot i with s + i; a sequence gives each slot its own seed.
    `reset(options={"reset_mask": bool [num_envs]})` opens the marked slots only and leaves the others as they are. A
    `snapshot` of one world goes to each of these slots, one of as many worlds gives each its own.

    ## Episode End
    As in `WorldScapeEnv`; `max_episode_steps` (300 through `gym.make_vec`) truncates here, without a wrapper.

    Infos hold, under each name of `WorldScapeEnv`'s, the values of all slots, and under `_name` which slots have one;
    the groups `memory` and `trust` are dicts of the same kind.

    ## Arguments
    Those of `WorldScapeEnv`, and:

    | Name | Default | Meaning |
    |---|---|---|
    | `num_envs` | `1` | number of slots |
    | `autoreset_mode` | `NEXT_STEP` | what happens to a row whose episode ended, see below |
    | `output` | `"numpy"` | `"torch"`: observations, rewards, ends and infos are tensors that stay on the device |
    | `render_mode` | `None` | `"rgb_array"` or `"depth_array"`: `render()` returns a tuple of `WorldScapeEnv`'s |

    Autoreset modes (an `AutoresetMode` or its name):

    - `NEXT_STEP`: the next step ignores the row's action and returns the new episode's first observation, reward 0.
    - `SAME_STEP`: the same step returns the new episode's first observation; the old one's last observation and info
      are in `info["final_obs"]` and `info["final_info"]`, rows marked in `_final_obs` and `_final_info`.
      With `output="torch"`, `final_obs` is a tensor of all rows.
    - `DISABLED`: stepping the row raises; reset it with `reset_mask`.

    ## Vectorized Environment
    `gym.make_vec("WorldScape-Nav-v0", num_envs=16)` builds this class.

    ## Version History
    - v0: first version.
    """

    metadata: dict[str, Any] = {
        "render_modes": list(ARRAY_MODES),
        "render_fps": RENDER_FPS,
        "autoreset_mode": AutoresetMode.NEXT_STEP,
    }

    defaults: ClassVar[dict[str, Any]] = {}
    """Options of this environment that are not `WorldOptions`' own defaults."""

    def __init__(
        self,
        num_envs: int = 1,
        *,
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
        output: str = "numpy",
        render_mode: str | None = None,
        **options: Any,
    ) -> None:
        if not is_whole(num_envs) or num_envs < 1:
            raise ValueError(f"num_envs={num_envs!r} is no count; give a whole number of at least 1.")
        if output not in OUTPUTS:
            raise ValueError(f"output={output!r} is unknown; choose one of {OUTPUTS}.")
        num_envs = self.num_envs = int(num_envs)
        self.autoreset_mode = _autoreset_mode(autoreset_mode)
        self.metadata = {**type(self).metadata, "autoreset_mode": self.autoreset_mode}
        self.output = output
        self.render_mode = check_render_mode(render_mode, (None, *ARRAY_MODES))
        world_options = WorldOptions.from_keywords({**self.defaults, **options})
        self._core = WorldCore(world_options, num_envs, is_for_numpy=output == "numpy")
        self.single_observation_space = self._core.observation.space
        self.single_action_space = self._core.actions.space
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._rngs = [seeding.np_random()[0] for _ in range(num_envs)]
        self._batch: Batch | None = None

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Open new worlds -> (observations, infos); also after close.

        Raises ValueError for malformed seeds, masks and options; they leave a slot's random numbers alone.
        """
        rest = dict(options or {})
        rows = _reset_mask(rest.pop("reset_mask", None), self.num_envs)
        seeds = _row_seeds(seed, self.num_envs)
        rngs = [
            seeding.np_random(row_seed)[0] if row and row_seed is not None else rng
            for row, row_seed, rng in zip(rows, seeds, self._rngs, strict=True)
        ]
        self._reopen()
        batch = self._core.reset(rows, rngs, rest)
        self._rngs = rngs
        super().reset(seed=seeds[0] if is_whole(seed) else None)
        return self._show(batch, np.flatnonzero(rows).tolist())

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """One action per slot -> (observations, rewards, terminations, truncations, infos).

        Raises ValueError for malformed actions, ResetNeeded before reset or, with DISABLED, after a row's end.
        """
        if self._batch is None and not self.closed:
            raise ResetNeeded("the worlds are not open yet; call reset() before step().")
        everything = np.ones(self.num_envs, dtype=bool)
        final_info: dict[str, Any] = {}
        if self.autoreset_mode is AutoresetMode.NEXT_STEP:
            batch = self._step_or_reset(actions)
        else:
            batch = self._core.step(actions, everything)
            ended = self._core.needs_reset.copy()
            if self.autoreset_mode is AutoresetMode.SAME_STEP and ended.any():
                final_info = self._export_final(batch, ended)
                batch = self._begin_anew(batch, ended)
        self._batch = batch
        observation = map_observation(self._export, batch.observation)
        reward, terminated, truncated = map(self._export, (batch.reward, batch.terminated, batch.truncated))
        return observation, reward, terminated, truncated, {**self._export_info(batch.info, everything), **final_info}

    def snapshot(self, rows: Sequence[int] | None = None) -> Snapshot:
        """The worlds of slots `rows` (None: all) as a value: restore it here or in another environment, or save its
        `to_bytes()`. It holds the dream, its memory, the task's state and the steps taken; the generators that draw
        later starts stay the slots' own.
        """
        return self._core.snapshot(rows)

    def restore(self, snapshot: Snapshot | bytes, rows: Sequence[int] | None = None) -> tuple[Any, dict[str, Any]]:
        """Go on with a snapshot's worlds in slots `rows` (None: all) -> (observations, infos) of all slots.

        A snapshot of one world may fill any number of slots. Raises ValueError for what is no snapshot, another number
        of worlds, and a snapshot of other weights, config, memory or task.
        """
        self._reopen()
        return self._show(self._core.restore(snapshot, rows), rows)

    def fork(self, row: int, rows: Sequence[int]) -> tuple[Any, dict[str, Any]]:
        """Make slots `rows` copies of slot `row` -> (observations, infos) of all slots.

        They share its memory until their dreams part, so a fork costs next to nothing; noise does not differ between
        them, only actions do.
        """
        return self._show(self._core.fork(row, rows), rows)

    def _show(self, shown: Batch, rows: Sequence[int] | None) -> tuple[Any, dict[str, Any]]:
        """Put `rows` of a batch into the current one and export that."""
        mask = np.zeros(self.num_envs, dtype=bool)
        mask[slice(None) if rows is None else list(rows)] = True
        self._batch = shown if self._batch is None else self._batch.with_rows(mask, shown)
        observation = map_observation(self._export, self._batch.observation)
        return observation, self._export_info(self._batch.info, mask)

    def draw_map(self, row: int = 0, pixels: int = 512) -> np.ndarray:
        """The place that slot `row` remembers, from above, uint8 [pixels, pixels, 3]: see `WorldScapeEnv.draw_map`.

        Raises ValueError for a slot that there is not or fewer than 256 pixels, ResetNeeded before its first reset.
        """
        return draw_map(self._core.place(row), pixels)

    def render(self) -> tuple[np.ndarray, ...] | None:
        """One frame per slot, uint8 [h, w, 3] with a longer side of 256 pixels, or its depth, float32 [h, w]."""
        if self.render_mode is None:
            return None
        if self._batch is None:
            raise ResetNeeded("there is nothing to render yet; call reset() first.")
        if self.render_mode == "depth_array":
            return tuple(self._core.depths())
        return tuple(enlarge(frame) for frame in self._core.pictures())

    def close_extras(self, **kwargs: Any) -> None:
        """Free the model's memory."""
        self._core.close()
        self._batch = None

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(rows, columns, C) of the tokens in one slot's observation of `obs="latent"`."""
        return self._core.latent_shape

    @property
    def num_starts(self) -> int:
        """How many starts there are that suit the task; `reset(options={"start": i})` opens the i-th, from 0 on."""
        return self._core.num_starts

    @property
    def action_latency(self) -> int:
        """Steps from an action to the frame that shows it, beyond the very next one; above 0 with a rolling sampler."""
        return self._core.action_latency

    def get_keys_to_action(self) -> dict[tuple[int, ...], Any]:
        """Pressed keys -> action of one slot."""
        return self._core.actions.keys_to_action()

    def _step_or_reset(self, actions: Any) -> Batch:
        """NEXT_STEP: rows whose episode ended are reset, the others step."""
        ended = self._core.needs_reset.copy()
        if not ended.any():
            return self._core.step(actions, ~ended)
        stepped = None if ended.all() else self._core.step(actions, ~ended)
        opened = self._core.reset(ended, self._rngs, {})
        return opened if stepped is None else stepped.with_rows(ended, opened)

    def _reopen(self) -> None:
        self._core.reopen()
        self.closed = False

    def _begin_anew(self, batch: Batch, ended: np.ndarray) -> Batch:
        """SAME_STEP: first frames of new episodes, beside the reward and the ends of the old ones."""
        shown = batch.with_rows(ended, self._core.reset(ended, self._rngs, {}))
        shown.reward, shown.terminated, shown.truncated = batch.reward, batch.terminated, batch.truncated
        return shown

    def _export(self, value: Tensor) -> Any:
        """A copy that the user may keep and change: tensor or array."""
        return value.clone() if self.output == "torch" else value.cpu().numpy().copy()

    def _export_info(self, info: dict[str, Any], rows: np.ndarray) -> dict[str, Any]:
        """Gymnasium's vector infos: each name with its values and, under `_name`, the rows that have one."""
        exported: dict[str, Any] = {}
        for name, value in info.items():
            exported[name] = self._export_info(value, rows) if isinstance(value, dict) else self._export(value)
            exported[f"_{name}"] = self._mask(rows)
        return exported

    def _export_final(self, batch: Batch, ended: np.ndarray) -> dict[str, Any]:
        observation = map_observation(self._export, batch.observation)
        if self.output == "numpy":
            final = np.full(self.num_envs, None, dtype=object)
            for row in np.flatnonzero(ended).tolist():
                final[row] = map_observation(lambda part, row=row: part[row].copy(), observation)
            observation = final
        return {
            "final_obs": observation,
            "_final_obs": self._mask(ended),
            "final_info": self._export_info(batch.info, ended),
            "_final_info": self._mask(ended),
        }

    def _mask(self, rows: np.ndarray) -> Any:
        return torch.as_tensor(rows, device=self._core.device).clone() if self.output == "torch" else rows.copy()


def _autoreset_mode(mode: AutoresetMode | str) -> AutoresetMode:
    if isinstance(mode, AutoresetMode):
        return mode
    for known in AutoresetMode:
        if mode in (known.name, known.value, known.name.lower()):
            return known
    raise ValueError(f"autoreset_mode={mode!r} is unknown; choose one of {[known.name for known in AutoresetMode]}.")


def _reset_mask(mask: Any, num_envs: int) -> np.ndarray:
    if mask is None:
        return np.ones(num_envs, dtype=bool)
    if isinstance(mask, Tensor):
        mask = mask.cpu().numpy()
    mask = np.asarray(mask)
    if mask.dtype != np.bool_ or mask.shape != (num_envs,) or not mask.any():
        raise ValueError(
            f"reset_mask {mask!r} is no choice of slots; give a bool array of shape ({num_envs},) with a True in it."
        )
    return mask.copy()


def _row_seeds(seed: Any, num_envs: int) -> list[int | None]:
    if not isinstance(seed, (Sequence, np.ndarray)):
        first = check_seed(seed)
        return [None if first is None else first + row for row in range(num_envs)]
    if len(seed) != num_envs:
        raise ValueError(f"{len(seed)} seeds for {num_envs} slots; give one seed, or one per slot.")
    return [check_seed(row_seed) for row_seed in seed]
