"""WorldScape-Tabletop: a dexterous hand over a table, seen from the eyes, on MuJoCo with the Adroit hand.

The world is a pure function of the reset seed. `tabletop_layout.py` says what is in it, `tabletop_model.py` builds it,
`tabletop_world.py` moves it, `tabletop_tasks.py` judges it, `tabletop_policies.py` plays it.
"""

from typing import Any, ClassVar

import numpy as np
from gymnasium import spaces

from worldscape.conditioning.hands import ACTION_WIDTHS, HandScale, check_hand_actions, state_bound
from worldscape.data.simulator import PIXELS_AND_HANDS, SimulatorEnv, space_with_hands
from worldscape.data.tabletop_layout import draw_plan
from worldscape.data.tabletop_tasks import TASKS, Facts, Verdict
from worldscape.hand_tasks import FINGERTIP, PALM, check_reward_mode, pay

FIELD_OF_VIEW = 52.0  # degrees, vertical and horizontal (the picture is square)
RENDER_SIZE = 256
LARGEST_SIZE = 256
OBSERVED = ("pixels", PIXELS_AND_HANDS)
RIGHT = 1  # row of the right hand in arrays of both


class TabletopEnv(SimulatorEnv):
    """A right hand above a table with objects, seen from the eyes.

    ## Description
    A five-fingered hand floats at the end of a sleeve above a table. Shapes, sizes, masses, colours and textures of the
    objects, the table and the room, the light, the eyes' position and the hand's start follow from the reset seed.
    Seeds from 1,000,000 on are held out. World axes: x right, y down, z forward; the table's top is y = 0.

    ## Action Space
    `hand_actions="delta"` (default): `Box(-1, 1, (13,), float32)`, changes in one step of 0.1 s; values outside are
    clipped:

    | num | what | +1 means |
    |---|---|---|
    | 0, 1, 2 | wrist right, down, forward | 0.03 m |
    | 3, 4, 5 | hand turns about the axes right, down, forward through the wrist | 0.25 rad |
    | 6 ... 10 | thumb, index, middle, ring, little finger curls | 0.2 of its range |
    | 11 | thumb opposes | 0.2 of its range |
    | 12 | fingers spread | 0.2 of their range |

    `hand_actions="grasp"`: `Box(-1, 1, (4,), float32)`, numbers 0, 1, 2 as above, and one for 6 to 11 together, which
    closes the hand; it keeps its turn. There is less to try out, so more is learned in few steps.

    The wrist stays in a box of 0.52 x 0.345 x 0.52 m above the table and within 1.9 rad of palm down, fingers forward:
    what goes farther is clipped. Only the right hand is simulated. In the box the hand can leave the picture; its
    keypoints are then reported as not visible. Other descriptions of a hand (21 keypoints, EgoDex's 48 numbers) become
    such actions through `worldscape.conditioning.hand_poses`.

    ## Observation Space
    `obs="pixels"` (default), `Box(0, 255, (size, size, 3), uint8)`: the picture from the eyes, 52 degrees wide and
    high.

    `obs="pixels+hands"`, a `Dict` of that, `pixels`, and `hands`, `Box(-1, 1, (16,), float32)`: what a robot knows of
    itself, the row of `info["hand_state"]` that acts: where the wrist is 3 (metres, world axes), the first two columns
    of its rotation 6, the fingers as told 7.

    ## Rewards
    Dense, in [0, 1] each step, the largest on success; the functions in `tabletop_tasks.py` name each term. Success
    ends the episode, so over many steps these rewards favour hovering beside it: learn with `reward_mode="missing"`
    (dense - 1), or with `goal_terminates=False`.

    | `task` | success | stages |
    |---|---|---|
    | `reach` | index fingertip within 2.5 cm of the green ball | distance |
    | `push` | object within 4 cm of the disc, on the table, not held | hand behind the object, object to disc |
    | `pick_place` | object was lifted, lies within 4 cm of the disc, let go, still | grasp, lift, carry, place |

    ## Starting State
    The hand half open in the near right part of the table, palm down; one object to act on, up to three others.

    ## Episode End
    Terminated on success (unless `goal_terminates=False`); truncated after `max_episode_steps`.

    ## Arguments
    - `task`: `"reach"`, `"push"` or `"pick_place"` (default), or `"any"`: one of them, by the seed.
    - `size`: picture height and width in pixels, 16 to 256.
    - `goal_terminates`: end the episode on success; recordings set False and read `info["success"]`.
    - `hand_actions`: `"delta"` or `"grasp"`, see Action Space.
    - `reward_mode`: `"dense"` (default), `"missing"` or `"sparse"` (1 on success, else 0).
    - `obs`: `"pixels"` (default) or `"pixels+hands"`, see Observation Space.
    - `max_episode_steps`: steps before truncation by the environment itself; 0 (default) leaves it to `gym.make`, which
      truncates after 150.
    - `scale`: a `HandScale` with other step sizes and limits; None for the table above.
    - `masks`: `info` also has `hand_mask` and `object_mask` bool [size, size], where the hand's skin and the object are
      seen (half as slow again).
    - `render_mode`: None or `"rgb_array"` (256 x 256).

    `info`, as in WorldScape-Rooms: `depth` [size, size] (metres along the view axis), `pose` [4, 4] (camera to world,
    OpenCV axes), `intrinsics` [4] (fx, fy, cx, cy over the picture size), `camera` [6] (x, y, z, yaw, pitch, roll),
    `control` and `realised` [6] (motion of the camera: none), `collision` (something holds the wrist back), `success`,
    `goal_distance` (metres). Hands, two rows, left and right, the left one absent and zero: `hand_present` [2],
    `hand_keypoints` [2, 21, 3] (metres, MediaPipe's order), `hand_pixels` [2, 21, 2] (x right, y down),
    `hand_visible` [2, 21] (in the picture and not hidden), `hand_state` and `hand_command` [2, 16] (where the hand is
    and where it was told to be, `hands.state_to_vector`; the fingers of both as told, and a table or an object may hold
    them back: where they are, the keypoints say). Object: `object_pose` [4, 4], `target` [3], `contact`,
    `grasped` (the thumb presses it against fingers or palm), `lifted` (3 cm above its rest). `task_id`: 0 reach, 1
    push, 2 pick_place.

    ## Version History
    - v0: first version.
    """

    policies: ClassVar[str] = "worldscape.data.tabletop_policies"
    """Module with the recorder's policies by name, see `worldscape.data.rollout.load_policy`."""

    def __init__(
        self,
        task: str = "pick_place",
        size: int = 64,
        goal_terminates: bool = True,
        max_episode_steps: int = 0,
        scale: HandScale | None = None,
        masks: bool = False,
        render_mode: str | None = None,
        reward_mode: str = "dense",
        hand_actions: str = "delta",
        obs: str = "pixels",
    ):
        if task not in (*TASKS, "any"):
            raise ValueError(f"task is {task!r}; choose one of {', '.join(TASKS)} or any.")
        if hand_actions not in ACTION_WIDTHS:
            raise ValueError(f"hand_actions is {hand_actions!r}; choose one of {', '.join(ACTION_WIDTHS)}.")
        if not isinstance(size, int) or not 16 <= size <= LARGEST_SIZE:
            raise ValueError(f"size is {size!r}; it must be an int from 16 to {LARGEST_SIZE} pixels.")
        if obs not in OBSERVED:
            raise ValueError(f"obs is {obs!r}; choose one of {', '.join(OBSERVED)}.")
        super().__init__(size, goal_terminates, max_episode_steps, render_mode)
        self.task = task
        self.scale = scale or HandScale()
        self.obs, self._bound = obs, state_bound(self.scale)
        if obs == PIXELS_AND_HANDS:
            self.observation_space = space_with_hands(self.observation_space, self.scale, num_hands=1)
        self.masks = masks
        self.reward_mode = check_reward_mode(reward_mode)
        self.hand_actions = hand_actions
        self.action_space = spaces.Box(-1.0, 1.0, (ACTION_WIDTHS[hand_actions],), np.float32)

    def _make_world(self):
        from worldscape.data.tabletop_world import TabletopWorld

        return TabletopWorld(self.size, FIELD_OF_VIEW, self.scale)

    def _picture(self) -> np.ndarray:
        return self.world.picture(RENDER_SIZE)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        """Build the world of `seed` (or of the next random seed) -> (observation, info). `options` must be empty."""
        layout_seed = self._choose_layout(seed, options)
        rng = np.random.default_rng([20261123, layout_seed])
        names = tuple(TASKS)
        drawn = names[int(rng.integers(len(names)))]
        self.current_task = drawn if self.task == "any" else self.task
        self.world.build(draw_plan(rng, self.current_task))
        self._was_lifted = False
        observation, info, _ = self._observe()
        return observation, info

    def step(self, action: Any):
        """Take one action -> (observation, reward, terminated, truncated, info).

        Raises ValueError for an action of another width or with numbers that are not finite.
        """
        self._check_running()
        self.world.move(check_hand_actions(action, 1, self.hand_actions)[0])
        self._steps += 1
        observation, info, verdict = self._observe()
        terminated, truncated = self._is_over(verdict.success)
        reward = pay(self.reward_mode, verdict.reward, verdict.success)
        return observation, reward, terminated, truncated, info

    def _observe(self) -> tuple[Any, dict[str, Any], Verdict]:
        world = self.world
        frame, depth = world.observe()
        keypoints, touch, lifted = world.keypoints(), world.touch(), world.is_lifted()
        pose, target = world.object_pose(), np.array(world.plan.target, np.float32)
        self._was_lifted = self._was_lifted or (lifted and touch.grasped)
        verdict = TASKS[self.current_task](
            Facts(
                fingertip=keypoints[FINGERTIP],
                palm=keypoints[PALM].mean(0),
                object=pose[:3, 3],
                target=target,
                object_speed=world.object_speed(),
                contact=touch.contact,
                grasped=touch.grasped,
                lifted=lifted,
                was_lifted=self._was_lifted,
            )
        )
        info = {
            "depth": depth,
            "pose": world.pose(),
            "intrinsics": world.intrinsics(),
            "camera": world.camera(),
            "control": np.zeros(6, np.float32),
            "realised": np.zeros(6, np.float32),
            "collision": world.is_blocked(),
            "success": verdict.success,
            "goal_distance": verdict.distance,
            **self._hand_info(keypoints, depth),
            "object_pose": pose,
            "target": target,
            "contact": touch.contact,
            "grasped": touch.grasped,
            "lifted": lifted,
            "task_id": list(TASKS).index(self.current_task),
            **{f"reward_{name}": value for name, value in verdict.terms.items()},
        }
        if self.masks:
            info["hand_mask"], info["object_mask"] = world.masks()
        if self.obs != PIXELS_AND_HANDS:
            return frame, info, verdict
        hand = np.clip(info["hand_state"][RIGHT], -self._bound, self._bound)
        return {"pixels": frame, "hands": hand}, info, verdict

    def _hand_info(self, keypoints: np.ndarray, depth: np.ndarray) -> dict[str, np.ndarray]:
        pixels, visible = self.world.project(keypoints, depth)
        rows = {
            "hand_present": np.array(True),
            "hand_keypoints": keypoints,
            "hand_pixels": pixels,
            "hand_visible": visible,
            "hand_state": self.world.hand_state(),
            "hand_command": self.world.hand_command(),
        }
        return {name: np.stack([np.zeros_like(row), row]) for name, row in rows.items()}
