"""One dreamed world as a Gymnasium environment: a view of a `WorldCore` with one slot."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import gymnasium as gym
import numpy as np

from worldscape.splats.gaussians import Gaussians
from ws_gym.batch import Batch, map_info, map_observation
from ws_gym.core import WorldCore
from ws_gym.maps import draw_map
from ws_gym.options import WorldOptions, check_seed
from ws_gym.rendering import ARRAY_MODES, RENDER_FPS, check_render_mode, enlarge
from ws_gym.viewer import Viewer, can_open_window

if TYPE_CHECKING:
    from torch import Tensor

    from worldscape.snapshot import Snapshot
    from ws_gym.vector_env import WorldScapeVectorEnv

ROW = np.ones(1, dtype=bool)


class WorldScapeEnv(gym.Env[Any, Any]):
    """Walk through a world that a neural network dreams.

    ## Description
    A causal diffusion world model, trained on recorded episodes of a simulator, continues a few real frames for as long
    as you walk. Nothing behind it is simulated: walls stop you because the model learned that they do.

    World axes follow OpenCV: x right, y down, z forward; metres and radians. Yaw is positive to the right, pitch is
    positive up.

    ## Action Space
    `actions="discrete"` (default), `Discrete(9)`:

    | Num | Key | Action | Control |
    |---|---|---|---|
    | 0 | | no-op | none |
    | 1 | W | forward | 0.25 m |
    | 2 | A | left | 0.25 m |
    | 3 | S | back | 0.25 m |
    | 4 | D | right | 0.25 m |
    | 5 | left arrow | turn left | 15 degrees |
    | 6 | right arrow | turn right | 15 degrees |
    | 7 | up arrow | look up | 10 degrees, at most 30 from level |
    | 8 | down arrow | look down | 10 degrees, at most 30 from level |

    `actions="multi_discrete"`, `MultiDiscrete([3, 3, 3, 3])`, combined keys: walk (0 none, 1 forward, 2 back), strafe
    (1 right, 2 left), turn (1 right, 2 left), look (1 up, 2 down). Pass `noop=np.zeros(4, int)` to `utils.play.play`.

    `actions="continuous"`, `Box(-1, 1, (4,), float32)`: walk, strafe, turn, look as shares of the controls above;
    positive is forward, right, right, up. Two walking keys together walk diagonally, not faster.

    ## Observation Space
    `obs="pixels"` (default), `Box(0, 255, (height, width, 3), uint8)`: the picture from the agent's eyes. Height and
    width are the model's own (64 for `nano`) or those of `size=`.

    `obs="latent"`, `Box(-sqrt(C), sqrt(C), (rows * columns * C,), float32)`: the tokens that the frame was dreamed in,
    row by row from the upper left, C numbers each; `observation.reshape(env.unwrapped.latent_shape)` is their grid
    [rows, columns, C] ([4, 4, 64] for `nano`). A token has unit root mean square. The dream is the same. Latents are
    coarse: fine detail of what was seen before never passes them, the decoder takes it from memory.

    It saves making the picture and the depth map (`info` has no `depth`), their resizing and their way to the host,
    unless the task looks at them. It does not save the decoder: the next view is rebuilt out of remembered pictures,
    and the depth in them stops walks and chooses what is remembered, also in weights without `transformer.anchor`.
    `render()` shows the picture.

    ## Rewards
    Set by `task=`:

    | Task | Reward | Judge |
    |---|---|---|
    | `goal_object` | `1 - 0.2 t / horizon` on reaching the red box; `dense=True`: also for nearing it | learned heads |
    | `goal_pose` | decrease in distance, -0.01 a step, +1 within 0.3 m | dreamed camera pose |
    | `goal_image` | decrease in image distance, +1 when the view is found | dreamed frame |
    | `coverage` | 1 for each new cell of the floor and direction | dreamed camera pose |

    or by your own: a `ws_gym.tasks.Task`, or a function `(EngineFrame, elapsed [B]) -> reward [B]`; both may ask torch
    networks, and clone a frame's tensors before they change them in place. A Task names in `per_slot` what it keeps
    of each world, for snapshots and forks.

    ## Starting State
    Real frames of the simulator, drawn with the seed. `options` of `reset`:

    | Key | Value |
    |---|---|
    | `image` | your own picture: uint8 [h, w, 3] or a path; what a file leaves transparent shows white |
    | `video` | your own video: uint8 [T, h, w, 3] or a path; its last frame is where you stand |
    | `fov` | of that, or of a picture or video in `starts=`: degrees from its left to its right edge, 10 to 150 |
    | `start` | number of the start to use instead of a drawn one, below `env.unwrapped.num_starts` |
    | `snapshot` | a world to go on with, alone: what `snapshot()` returned, or the bytes of it |
    | `goal` | `goal_pose`: (forward, right) in metres |
    | `goal_image` | `goal_image`: the view to find, uint8 [h, w, 3] or a path |

    ## Episode End
    Terminated when the task says so. Truncated after `max_episode_steps` (300 through `gym.make`), and when drift (see
    `info["trust"]`) has been above `max_drift` for `drift_patience` steps one after another.

    ## Arguments

    | Name | Default | Meaning |
    |---|---|---|
    | `weights` | `"nano"` | name of shipped weights, a directory of your own, or `"debug"` (random, for tests) |
    | `device` | `"cpu"` | torch device |
    | `obs` | `"pixels"` | `"pixels"`, `"latent"`, or with hands `"pixels+hands"`, see Observation Space |
    | `size` | model's | observation size in pixels, or (height, width) |
    | `steps_per_frame` | model's | model calls that refine a frame |
    | `sampler` | `"blockwise"` | `"blockwise"` or `"rolling"`, see Samplers |
    | `precision` | `"auto"` | `"fp32"`, `"bf16"` (twice as fast on processors that know it), or what is faster |
    | `temperature` | 1.0 | of the noise; above 1 what memory does not show varies more, and holds more things |
    | `actions` | `"discrete"` | `"discrete"`, `"multi_discrete"` or `"continuous"` |
    | `task` | `"goal_object"` | see Rewards |
    | `task_options` | `None` | keyword arguments of the task, e.g. `{"radius": 0.5}` |
    | `starts` | `"train"` | `"train"`, `"heldout"`, `"drawn"`, or the path of a dataset, picture or video |
    | `max_episode_steps` | `None` | steps before truncation; `gym.make` adds its own wrapper for it instead |
    | `max_drift` | `None` | share of the picture, 0 to below 1, that may be dreamed through and through |
    | `drift_patience` | 16 | steps for which more of it may be, before truncation |
    | `render_mode` | `None` | `"rgb_array"` (256 pixels), `"depth_array"` (metres) or `"human"` (a window) |

    ## Samplers
    `"blockwise"` answers an action in the very next frame, with `steps_per_frame` + 1 model calls. `"rolling"` makes
    one call a step, whatever `steps_per_frame` is: that many frames are refined together, and each is shown when its
    turn has come, `steps_per_frame` - 1 steps later. `env.unwrapped.action_latency` and `info["action_latency"]` say
    how many; until then the start is shown, and reward, pose, `control` and `realised` are always those of the frame
    that is shown.

    `info` holds, at reset and at each step: `pose` [4, 4] camera to world, `camera` [6] = (x, y, z, yaw, pitch, roll),
    `control` [6] commanded and `realised` [6] obtained (right, down, forward; yaw, pitch, roll), `collision` (less than
    half of the walk was realised), `coverage` (share of the picture that memory shows), `depth` [height, width] in
    metres along the view axis (with pixels only), `success`, `model_calls` (of this step), `action_latency`
    (steps), the task's terms, and two groups.

    `info["memory"]`: what is remembered, and what of it the last frame was made of.

    | Key | Unit | Meaning |
    |---|---|---|
    | `pages_used` | frames | held in memory |
    | `pool_size` | frames | of these in the pool, chosen because they showed something new |
    | `frames_seen` | frames | committed since the start, start frames included |
    | `anchor_ages` [A] | steps | how much earlier each frame was committed that was chosen to be reprojected; -1 none |
    | `retrieved_ages` [R] | steps | the same of frames from the pool whose keys were read; -1 none |
    | `novelty` | share | of the picture, what memory did not explain |

    `info["trust"]`: how far the picture is from what was real.

    | Key | Unit | Meaning |
    |---|---|---|
    | `drift` | share | of the picture, what does not go back to real frames, through however many dreamed ones |
    | `steps_since_real` | steps | since a real frame itself last showed at least 1/16 of the view |

    Drift tells how much was invented, not whether it was invented well: `worldscape eval trust` measures what it says
    of the error.

    `env.unwrapped.draw_map()` draws what the world remembers from above; `env.unwrapped.reconstruct()` gives it as 3D
    Gaussians.

    ## Vectorized Environment
    `gym.make_vec("WorldScape-Nav-v0", num_envs=16)` steps 16 worlds in one model, much faster than 16 environments: see
    `WorldScapeVectorEnv`. Do not fork processes that use CUDA.

    ## Version History
    - v0: first version.
    """

    # Of the class, which `gym.make` reads: where "human" is not listed, it would open a window itself and say nothing.
    metadata = {"render_modes": ["human", *ARRAY_MODES], "render_fps": RENDER_FPS}

    defaults: ClassVar[dict[str, Any]] = {}
    """Options of this environment that are not `WorldOptions`' own defaults."""

    def __init__(self, *, render_mode: str | None = None, **options: Any) -> None:
        options = {**self.defaults, **options}
        self.render_mode = check_render_mode(render_mode, (None, *ARRAY_MODES, "human"))
        if not can_open_window():
            self.metadata = {**self.metadata, "render_modes": [*ARRAY_MODES]}
        self._options = options
        self._core = WorldCore(WorldOptions.from_keywords(options), num_slots=1, is_for_numpy=True)
        self._viewer: Viewer | None = None
        self._reopen()
        self.observation_space = self._core.observation.space
        self.action_space = self._core.actions.space

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Open a new world -> (observation, info); also after close.

        Raises ValueError for malformed seeds and options; random numbers then go on as if it had not been called.
        """
        kept = self._np_random, self._np_random_seed
        super().reset(seed=check_seed(seed))
        self._reopen()
        try:
            batch = self._core.reset(ROW, [self.np_random], options or {})
        except ValueError:
            self._np_random, self._np_random_seed = kept
            raise
        return self._show(batch)

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Take one action -> (observation, reward, terminated, truncated, info).

        Raises ValueError for an action outside the space, ResetNeeded before reset and after the episode's end,
        ClosedEnvironmentError after close.
        """
        batch = self._core.step(add_row(action), ROW)
        observation, info = self._show(batch)
        return observation, batch.reward.item(), bool(batch.terminated), bool(batch.truncated), info

    def __getstate__(self) -> dict[str, Any]:
        """What copies and pickles are made of; their first reset opens a window of their own."""
        return {**vars(self), "_viewer": None}

    def snapshot(self) -> Snapshot:
        """This world as a value: the dream, its memory, the task's state, the steps taken. `to_bytes()` saves it.

        `reset(options={"snapshot": ...})` goes on with it, in any process and through wrappers. The limit of `gym.make`
        is a wrapper that counts by itself, from that reset on; that of `WorldScapeEnv(max_episode_steps=...)`, made
        without `gym.make`, counts the steps of the world.
        """
        return self._core.snapshot()

    def restore(self, snapshot: Snapshot | bytes) -> tuple[np.ndarray, dict[str, Any]]:
        """Go on with the world of a snapshot -> (observation, info). The same actions give the same frames again.

        Raises ValueError for what is no snapshot, and for one of several worlds, or of other weights, config, memory
        or task.
        """
        self._reopen()
        return self._show(self._core.restore(snapshot))

    def fork(self, n: int, *, max_episode_steps: int | None = None) -> WorldScapeVectorEnv:
        """A vector environment of n worlds that all go on from here, to try different actions side by side.

        It has this environment's options, renders arrays as it does, and no autoreset. Its worlds share their memory
        until they part. They are truncated after `max_episode_steps` since their reset; None: this environment's own
        limit, or else the one that `gym.make` gives its id (one passed to `gym.make` is known to its wrapper only).
        """
        from ws_gym.vector_env import WorldScapeVectorEnv

        limit = self._step_limit() if max_episode_steps is None else max_episode_steps
        options = {**self._options, "max_episode_steps": limit}
        mode = self.render_mode if self.render_mode in ARRAY_MODES else None
        copies = WorldScapeVectorEnv(n, autoreset_mode="DISABLED", render_mode=mode, **options)
        copies.restore(self.snapshot())
        return copies

    def render(self) -> np.ndarray | None:
        """The current frame, uint8 [h, w, 3] with a longer side of 256 pixels; its depth, float32 [h, w] in metres
        along the view axis at the picture's own size, as in `info`; or None when a window shows it.

        Raises ResetNeeded before reset, ClosedEnvironmentError after close.
        """
        if self.render_mode is None:
            return None
        if self.render_mode == "depth_array":
            return self._core.depths()[0]
        picture = self._core.pictures()[0]
        if self._viewer is not None:
            self._viewer.show(picture)
            return None
        return enlarge(picture)

    def reconstruct(self) -> Gaussians:
        """The remembered place as 3D Gaussians in world axes (`worldscape.splats`): render them, or export a `.ply`.

        Call it as `env.unwrapped.reconstruct()`. Raises ResetNeeded before reset, ClosedEnvironmentError after close.
        """
        return self._core.reconstruct(0)

    def draw_map(self, pixels: int = 512) -> np.ndarray:
        """The remembered place from above, uint8 [pixels, pixels, 3]: surfaces, the path (its last 512 steps), the
        cameras of remembered frames with those that the last step used, and where one stands and looks.

        Call it as `env.unwrapped.draw_map()`. Raises ValueError for fewer than 256 pixels, ResetNeeded before reset,
        ClosedEnvironmentError after close.
        """
        return draw_map(self._core.place(0), pixels)

    def close(self) -> None:
        """Free the model's memory and the window; may be called twice."""
        self._core.close()
        if self._viewer is not None:
            self._viewer.close()
            self._viewer = None

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(rows, columns, C) of the tokens in an observation of `obs="latent"`."""
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
        """Pressed keys -> action, for `gymnasium.utils.play`: W A S D walk, arrow keys turn and look."""
        return self._core.actions.keys_to_action()

    def _reopen(self) -> None:
        self._core.reopen()
        if self.render_mode == "human" and self._viewer is None:
            self._viewer = Viewer("WorldScape", RENDER_FPS)

    def _step_limit(self) -> int | None:
        """Steps of an episode, as far as an environment knows that has wrappers around it."""
        if self._core.max_episode_steps is not None or self.spec is None:
            return self._core.max_episode_steps
        return gym.spec(self.spec.id).max_episode_steps

    def _show(self, batch: Batch) -> tuple[Any, dict[str, Any]]:
        observation = map_observation(first_row, batch.observation)
        if self._viewer is not None:
            self._viewer.show(self._core.pictures()[0])
        return observation, map_info(first_row, batch.info)


def add_row(action: Any) -> np.ndarray:
    """One action -> a batch of one."""
    if hasattr(action, "detach"):
        action = action.detach().cpu()
    try:
        return np.asarray(action)[None]
    except ValueError as error:
        raise ValueError(f"action {action!r} is ragged; give one action of the action space.") from error


def first_row(values: Tensor) -> Any:
    """The only row of [1, ...], on the CPU, as a Python scalar or an array of its own."""
    return values.item() if values.ndim == 1 else values.numpy()[0].copy()
