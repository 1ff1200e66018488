"""The tabletop's physics: a plan that was built, moved by hand actions, and what there is to know about it.

The wrist follows its command through a weld with give, so a table or an object stops it; the command then waits for
the wrist instead of running ahead.
"""

# mujoco's compiled module has no stubs.
# pyright: reportAttributeAccessIssue=false

from typing import NamedTuple

import cv2
import mujoco
import numpy as np
import torch

from worldscape.conditioning.camera import pose_from_state_numpy, square_intrinsics
from worldscape.conditioning.hand_model import FINGERTIPS, NUM_KEYPOINTS, HandState, joint_angles
from worldscape.conditioning.hands import (
    HandScale,
    apply_hand_action,
    leash,
    state_to_vector,
    vector_from_rotation,
)
from worldscape.data.tabletop_gl import SUPERSAMPLING, TabletopCamera
from worldscape.data.tabletop_layout import Plan
from worldscape.data.tabletop_model import (
    HAND_JOINTS,
    build_model,
    from_mujoco,
    quaternion,
    rotation_from_mujoco,
    rotation_to_mujoco,
    to_mujoco,
)

STEP_SECONDS = 0.1
NUM_UPDATES = 10  # of the servos' targets in a step of 0.1 s
MOVING_UPDATES = 6  # in which the targets move; then the hand settles
STEPS_PER_UPDATE = 4
LIFTED = 0.03  # metres above its rest at which an object counts as lifted
TOUCH_FORCE = 0.05  # newtons
SURFACE_DEPTH = 0.028  # metres a keypoint may lie under the surface that is seen

_KEYPOINT_BODIES = ("wrist", "thbase", "thmiddle", "thdistal", "S_thtip") + tuple(
    name.format(finger)
    for finger in ("ff", "mf", "rf", "lf")
    for name in ("{}knuckle", "{}middle", "{}distal", "S_{}tip")
)


class Touch(NamedTuple):
    """What the hand does to the object. contact: they touch; grasped: the thumb presses it against fingers or palm."""

    contact: bool
    grasped: bool


class TabletopWorld:
    """One world after another in one renderer; positions outside are in world axes (x right, y down, z forward)."""

    def __init__(self, size: int, field_of_view: float, scale: HandScale) -> None:
        self.size, self.field_of_view, self.scale = size, field_of_view, scale
        self._camera = TabletopCamera()

    def build(self, plan: Plan) -> None:
        """Make the world of a plan, with the hand at its start."""
        self.plan = plan
        self._model = build_model(plan, self.field_of_view)
        self._data = mujoco.MjData(self._model)
        self._camera.load(self._model)
        self._find_parts()
        self._set_camera(np.array(plan.camera, np.float32))
        self.command = HandState(torch.tensor(plan.wrist), torch.eye(3), torch.full((7,), plan.fingers))
        self._place_hand()
        mujoco.mj_step(self._model, self._data, 40)
        self.rest_height = self._data.xpos[self._object][2]

    def move(self, action: np.ndarray) -> None:
        """Take one step of `STEP_SECONDS` with a delta action [13]; the hand obtains what contact allows."""
        goal = apply_hand_action(self.command, torch.from_numpy(action), self.scale)
        old_place, old_turn, old_angles = self._targets(self.command)
        place, turn, angles = self._targets(goal)
        turn = turn if turn @ old_turn >= 0 else -turn
        for update in range(1, NUM_UPDATES + 1):
            share = min(update / MOVING_UPDATES, 1.0)
            between = old_turn + share * (turn - old_turn)
            self._data.mocap_pos[0] = old_place + share * (place - old_place)
            self._data.mocap_quat[0] = between / np.linalg.norm(between)
            self._data.ctrl[self._servos] = old_angles + share * (angles - old_angles)
            mujoco.mj_step(self._model, self._data, STEPS_PER_UPDATE)
        mujoco.mj_forward(self._model, self._data)
        self.command = goal._replace(position=leash(goal.position, self._hand().position))

    def observe(self) -> tuple[np.ndarray, np.ndarray]:
        """-> picture uint8 [size, size, 3] and z-depth float32 [size, size] in metres, from one rendering pass."""
        return self._camera.draw(self._data, self.size, self._shadows())

    def masks(self) -> tuple[np.ndarray, np.ndarray]:
        """Where `observe` has just drawn the hand (skin, not the sleeve) and the object: bool [size, size] each, true
        where they cover at least half of a pixel."""
        geoms = self._camera.draw_geoms(self.size * SUPERSAMPLING)
        shares = (cv2.resize(part[geoms], (self.size, self.size), interpolation=cv2.INTER_AREA) for part in self._parts)
        hand, thing = (share >= 0.5 for share in shares)
        return hand, thing

    def picture(self, size: int) -> np.ndarray:
        """A picture of another size, for people -> uint8 [size, size, 3]."""
        return self._camera.draw(self._data, size, self._shadows())[0]

    def camera(self) -> np.ndarray:
        """-> float32 [6]: x, y, z (metres), yaw, pitch, roll (radians)."""
        return self._camera_state.copy()

    def pose(self) -> np.ndarray:
        """-> camera to world float32 [4, 4], OpenCV axes."""
        return pose_from_state_numpy(self._camera_state)

    def intrinsics(self) -> np.ndarray:
        """-> float32 [4]: fx, fy, cx, cy in units of the picture's size."""
        return square_intrinsics(self.field_of_view)

    def keypoints(self) -> np.ndarray:
        """-> float32 [21, 3]: where the hand's keypoints are, metres."""
        points = np.where(self._is_site[:, None], self._data.site_xpos[self._sites], self._data.xpos[self._bodies])
        return from_mujoco(points).astype(np.float32)

    def hand_state(self) -> np.ndarray:
        """-> float32 [16]: where the wrist is and what the fingers are told, see `hands.state_to_vector`."""
        return state_to_vector(self._hand()).numpy()

    def hand_command(self) -> np.ndarray:
        """-> float32 [16]: where the hand was told to be."""
        return state_to_vector(self.command).numpy()

    def object_pose(self) -> np.ndarray:
        """-> float32 [4, 4]: the first object's axes and centre."""
        pose = np.eye(4, dtype=np.float32)
        pose[:3, :3] = rotation_from_mujoco(self._data.xmat[self._object].reshape(3, 3))
        pose[:3, 3] = from_mujoco(self._data.xpos[self._object])
        return pose

    def object_speed(self) -> float:
        """Metres a second of the first object's centre."""
        return float(np.linalg.norm(self._data.joint("object0").qvel[:3]))

    def is_lifted(self) -> bool:
        """Whether the first object's centre is 3 cm or more above where it rested."""
        return bool(self._data.xpos[self._object][2] > self.rest_height + LIFTED)

    def touch(self) -> Touch:
        """Which parts of the hand press on the first object, with at least 0.05 N."""
        pressing: set[str] = set()
        force = np.zeros(6)
        for index, contact in enumerate(self._data.contact):
            pair = {int(contact.geom1), int(contact.geom2)}
            if self._object_geom not in pair or not (pair & self._hand_geoms.keys()):
                continue
            mujoco.mj_contactForce(self._model, self._data, index, force)
            if force[0] >= TOUCH_FORCE:
                pressing |= {self._hand_geoms[geom] for geom in pair if geom in self._hand_geoms}
        return Touch(contact=bool(pressing), grasped="thumb" in pressing and len(pressing) > 1)

    def is_blocked(self) -> bool:
        """Whether the wrist is held back: it lags its command by more than a centimetre or 0.2 radians."""
        hand = self._hand()
        lag = (hand.position - self.command.position).norm()
        turn = vector_from_rotation(self.command.rotation @ hand.rotation.mT).norm()
        return bool(lag > 0.01 or turn > 0.2)

    def project(self, points: np.ndarray, depth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Points [N, 3] in world axes -> pixels float32 [N, 2] (x right, y down) and whether each is seen, bool [N].

        Seen: inside the picture, and at most `SURFACE_DEPTH` behind what the depth picture [size, size] shows there.
        """
        pose, (fx, fy, cx, cy) = self.pose(), self.intrinsics()
        seen_from = (points - pose[:3, 3]) @ pose[:3, :3]
        z = np.maximum(seen_from[:, 2], 1e-3)
        pixels = self.size * np.stack([fx * seen_from[:, 0] / z + cx, fy * seen_from[:, 1] / z + cy], -1)
        inside = ((pixels >= 0) & (pixels < self.size)).all(-1) & (seen_from[:, 2] > 0)
        column, row = np.clip(pixels.astype(int), 0, self.size - 1).T
        return pixels.astype(np.float32), inside & (seen_from[:, 2] < depth[row, column] + SURFACE_DEPTH)

    def close(self) -> None:
        """Free the renderer; may be called twice."""
        self._camera.close()

    def _find_parts(self) -> None:
        model = self._model
        self._is_site = np.array([name.startswith("S_") for name in _KEYPOINT_BODIES])
        self._sites = np.array([model.site(name).id if name.startswith("S_") else 0 for name in _KEYPOINT_BODIES])
        self._bodies = np.array([0 if name.startswith("S_") else model.body(name).id for name in _KEYPOINT_BODIES])
        assert len(_KEYPOINT_BODIES) == NUM_KEYPOINTS
        self._servos = np.array([model.actuator(name).id for names in HAND_JOINTS for name in names])
        self._wrist = model.body("hand").id
        self._object, self._object_geom = model.body("object0").id, model.geom("object0").id
        skin = (model.body_rootid[model.geom_bodyid] == self._wrist) & (model.geom_bodyid != self._wrist)
        parts = np.stack([skin, np.arange(model.ngeom) == self._object_geom])
        self._parts = np.pad(parts, ((0, 0), (0, 1))).astype(np.float32)  # the last column: no geom
        names = {geom: model.geom(geom).name for geom in range(model.ngeom)}
        self._hand_geoms = {
            geom: "thumb" if name.startswith("C_th") else name for geom, name in names.items() if name.startswith("C_")
        }

    def _set_camera(self, state: np.ndarray) -> None:
        self._camera_state = state
        pose = self.pose()
        self._model.cam_pos[0] = to_mujoco(pose[:3, 3])
        self._model.cam_quat[0] = quaternion(rotation_to_mujoco(pose[:3, :3]) @ np.diag([1.0, -1.0, -1.0]))

    def _targets(self, state: HandState) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """State -> position [3] and quaternion [4] of the wrist in MuJoCo's axes, and joint angles [20]."""
        place = to_mujoco(state.position.double().numpy())
        turn = quaternion(rotation_to_mujoco(state.rotation.double().numpy()))
        return place, turn, joint_angles(state.fingers).double().numpy().ravel()

    def _place_hand(self) -> None:
        data, (place, turn, angles) = self._data, self._targets(self.command)
        data.mocap_pos[0], data.mocap_quat[0] = place, turn
        data.qpos[:7] = [*place, *turn]
        data.ctrl[self._servos] = angles
        data.qpos[self._model.jnt_qposadr[self._model.actuator_trnid[self._servos, 0]]] = angles
        mujoco.mj_forward(self._model, data)

    def _hand(self) -> HandState:
        """Where the wrist is, and what the fingers are told."""
        rotation = rotation_from_mujoco(self._data.xmat[self._wrist].reshape(3, 3))
        position = from_mujoco(self._data.xpos[self._wrist])
        return HandState(torch.tensor(position).float(), torch.tensor(rotation).float(), self.command.fingers)

    def _shadows(self) -> np.ndarray:
        """Points above the table that cast a soft shadow -> [N, 4] (x, y, height, radius) in MuJoCo's axes."""
        half_x, half_y = self.plan.table_size
        objects = [self._data.body(f"object{index}").xpos for index in range(len(self.plan.objects))]
        bottoms = [place[2] - item.size[1] for place, item in zip(objects, self.plan.objects, strict=True)]
        rows = [
            [place[0], place[1], max(bottom, 0.0), 1.15 * min(item.size[0], item.size[2])]
            for place, bottom, item in zip(objects, bottoms, self.plan.objects, strict=True)
        ]
        points = to_mujoco(self.keypoints())
        rows += [[*points[index], 0.014] for index in (*FINGERTIPS, 2, 3, 6, 7, 10, 11, 14, 15, 18, 19)]
        rows += [[*points[index], 0.03] for index in (5, 9, 13, 17)]
        shadows = np.array(rows)
        return shadows[(np.abs(shadows[:, 0]) < half_x) & (np.abs(shadows[:, 1] - 0.1) < half_y)]
