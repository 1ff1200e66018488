"""Worlds with hands: `WorldScape-Hand-v0` and `WorldScape-Universal-v0`, single and vector.

They are the worlds of `WorldScapeEnv` with other defaults; one model dreams them all.
"""

from __future__ import annotations

from typing import Any, ClassVar

from ws_gym.env import WorldScapeEnv
from ws_gym.vector_env import WorldScapeVectorEnv

HAND: dict[str, Any] = {
    "actions": "hands",
    "hands": "right",
    "task": "pick_place",
    "starts": "hands-train",
}
UNIVERSAL: dict[str, Any] = {**HAND, "actions": "universal"}


class WorldScapeHandEnv(WorldScapeEnv):
    """Move a dexterous hand over a table that a neural network dreams.

    ## Description
    As `WorldScapeEnv`, with hands: a kinematic hand turns actions into 21 keypoints, a head that learned from the
    simulator says how far things hold the wrist back, and the model is shown the keypoints as a pose video beside the
    picture. What the objects do is dreamed. `WorldScape-Tabletop-v0` is the simulator it is learned from.

    ## Action Space
    `hand_actions="delta"` (default): `Box(-1, 1, (13 * hands,), float32)`, the left hand first where there are two;
    finite numbers outside are clipped, NaN and infinity raise ValueError:

    | num | what | +1 means |
    |---|---|---|
    | 0, 1, 2 | wrist right, down, forward | 0.03 m |
    | 3, 4, 5 | hand turns about the axes right, down, forward through the wrist | 0.25 rad |
    | 6 ... 10 | thumb, index, middle, ring, little finger curls | 0.2 of its range |
    | 11 | thumb opposes | 0.2 of its range |
    | 12 | fingers spread | 0.2 of their range |

    The wrist stays in a box of 0.52 x 0.345 x 0.52 m above the table and within 1.9 rad of palm down, fingers forward.
    In it the hand can leave the picture; what it does there is not seen.

    `hand_actions="grasp"`: `Box(-1, 1, (4 * hands,))`, numbers 0, 1, 2 as above, and one for 6 to 11 together, which
    closes the hand; it keeps its turn. There is less to try out, so more is learned in few steps.

    `hand_actions="keypoints"`: `Box(-1, 1, (63 * hands,))`, x, y, z in metres of where the keypoints shall be, in
    MediaPipe's order. `hand_actions="egodex"`: `Box(-1, 1, (48,))`, EgoDex's numbers for the left and the right hand
    (`worldscape.conditioning.hand_poses`). A step goes towards them as far as one delta action can.

    ## Observation Space
    As in `WorldScapeEnv`; and `obs="pixels+hands"`, a `Dict` of the picture, `pixels`, and `hands`,
    `Box(-1, 1, (16 * hands,), float32)`: what a robot knows of itself, the rows of `info["hand_state"]` that act, the
    left one first: where the wrist is 3 (metres), the first two columns of its rotation 6, the fingers as told 7.

    ## Rewards
    Dense, in [0, 1] each step, by the simulator's rules of that task. One head finds object and target in the picture,
    another says how the hand moves the object, and whether it touches, holds and lifts it:

    | Task | Success |
    |---|---|
    | `reach` | the index fingertip touches the green ball |
    | `push` | the object is on the disc, pushed |
    | `pick_place` (default) | the object was lifted and put down on the disc |

    Success ends the episode, so over many steps dense rewards favour hovering beside it. To learn, take
    `task_options={"reward_mode": "missing"}` (dense - 1 each step: what is missing to the best, until it is reached),
    `{"reward_mode": "sparse"}` (1 on success, else 0), or `{"goal_terminates": False}` (success goes on being paid).

    ## Starting State
    A recorded frame of that task on the tabletop before anything was touched, with the hand where it was;
    `options={"start": i}` is the i-th of `env.unwrapped.num_starts` that were recorded of the task. A hand that
    the frame lacks begins as the mirror image of the other. In your own pictures (`options={"image": ...}`) hands rest
    in front of you.

    ## Episode End
    Terminated when a learned head sees success (unless `task_options={"goal_terminates": False}`); truncated after
    `max_episode_steps` (150 through `gym.make`).

    ## Arguments
    Those of `WorldScapeEnv`, and:

    | Name | Default | Meaning |
    |---|---|---|
    | `weights` | `"nano"` | as in `WorldScapeEnv`; they must know hands |
    | `hands` | `"right"` | `"right"`, `"left"` or `"both"` |
    | `hand_actions` | `"delta"` | `"delta"`, `"grasp"`, `"keypoints"` or `"egodex"` |
    | `task` | `"pick_place"` | `"reach"`, `"push"`, `"pick_place"`, or one of `WorldScapeEnv`'s |
    | `starts` | `"hands-train"` | `"hands-train"`, `"hands-heldout"`, or as in `WorldScapeEnv` |

    `info` holds beside `WorldScapeEnv`'s: `hand_present` [2], `hand_keypoints` [2, 21, 3] (metres, world axes),
    `hand_pixels` [2, 21, 2] (x right, y down), `hand_state` and `hand_command` [2, 16] (where the hands are and where
    they were told to be, `hands.state_to_vector`, in the axes of a workspace that goes with the eyes; the world's while
    the camera stands still); rows are left and right. And what the tasks are about, as a head finds it in the picture:
    `object_position` and `target` [3] (metres, world axes), `contact`, `grasped` and `lifted`.

    ## Vectorized Environment
    `gym.make_vec("WorldScape-Hand-v0", num_envs=16)`.

    ## Version History
    - v0: first version.
    """

    defaults: ClassVar[dict[str, Any]] = HAND


class WorldScapeUniversalEnv(WorldScapeEnv):
    """Walk, look and use hands in one step: `WorldScapeHandEnv` with a camera that moves.

    ## Action Space
    `Box(-1, 1, (4 + 13 * hands,), float32)`; finite numbers outside are clipped:

    | num | what | +1 means |
    |---|---|---|
    | 0, 1 | walk forward, right | 0.25 m; both together walk diagonally, not faster |
    | 2, 3 | turn right, look up | 15 and 10 degrees |
    | 4 ... 16 | a hand, as in `WorldScapeHandEnv` (the left one where there are two) | |
    | 17 ... 29 | the right hand, with `hands="both"` | |

    Hands go along with the eyes: their axes and their box move and turn with the levelled camera.

    Everything else as in `WorldScapeHandEnv`.
    """

    defaults: ClassVar[dict[str, Any]] = UNIVERSAL


class WorldScapeHandVectorEnv(WorldScapeVectorEnv):
    """`num_envs` worlds of `WorldScapeHandEnv` in one model: `WorldScapeVectorEnv` with its defaults."""

    defaults: ClassVar[dict[str, Any]] = HAND


class WorldScapeUniversalVectorEnv(WorldScapeVectorEnv):
    """`num_envs` worlds of `WorldScapeUniversalEnv` in one model: `WorldScapeVectorEnv` with its defaults."""

    defaults: ClassVar[dict[str, Any]] = UNIVERSAL
