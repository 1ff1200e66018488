"""A simulator of your own, for `bring_your_simulator.py`: a box-shaped room drawn with a few lines of NumPy.

A simulator needs an image observation and, for a model that knows where it is, the `info` that `TinyRoom._info` offers.
"""

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from worldscape.conditioning.camera import pose_from_state_numpy
from worldscape.conditioning.controls import DISCRETE_ACTIONS, discrete_controls

HALF_SIZE = np.array([3.0, 1.25, 3.0])  # metres from the centre of the room to its walls, ceiling and floor
WALL_MARGIN = 0.4  # metres that the camera keeps from a wall
MAX_PITCH = np.radians(30.0)
FOCAL_LENGTH = 0.5 / np.tan(np.radians(40.0))  # of a picture 1 wide: 80 degrees from edge to edge


class TinyRoom(gym.Env):
    """A room whose six sides have checkered colours that follow from the seed; reward 1 for reaching the far wall."""

    def __init__(self, size: int = 64):
        self.action_space = spaces.Discrete(len(DISCRETE_ACTIONS))
        self.observation_space = spaces.Box(0, 255, (size, size, 3), np.uint8)
        self.controls = discrete_controls()
        centres = (np.arange(size) + 0.5) / size - 0.5
        x, y = np.meshgrid(centres / FOCAL_LENGTH, centres / FOCAL_LENGTH)
        self.rays = np.stack([x, y, np.ones_like(x)], axis=-1)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.colours = self.np_random.integers(60, 256, (2, 3, 3))  # [negative or positive side, axis, RGB]
        self.camera = np.zeros(6, np.float32)
        self.camera[[0, 2]] = self.np_random.uniform(-2.0, 2.0, 2)
        self.camera[3] = self.np_random.uniform(-np.pi, np.pi)
        return self._observe(np.zeros(6, np.float32), collision=False)

    def step(self, action):
        control = self.controls[int(action)].copy()
        control[4] = np.clip(self.camera[4] + control[4], -MAX_PITCH, MAX_PITCH) - self.camera[4]
        self.camera[3:5] += control[3:5]
        sine, cosine = np.sin(self.camera[3]), np.cos(self.camera[3])
        right, _, forward = control[:3]
        position = self.camera[:3] + np.array([forward * sine + right * cosine, 0.0, forward * cosine - right * sine])
        collision = bool((np.abs(position) > HALF_SIZE - WALL_MARGIN).any())
        if collision:
            control[:3] = 0.0
        else:
            self.camera[:3] = position
        picture, info = self._observe(control, collision)
        return picture, float(info["success"]), False, False, info

    def _observe(self, realised, collision):
        """The picture and what the simulator knows: every ray ends on the first side of the box that it meets."""
        pose = pose_from_state_numpy(self.camera)
        rays = self.rays @ pose[:3, :3].T
        rays[np.abs(rays) < 1e-9] = 1e-9
        distances = (np.sign(rays) * HALF_SIZE - pose[:3, 3]) / rays
        depth = distances.min(axis=-1)
        axis = distances.argmin(axis=-1)
        side = np.take_along_axis(rays, axis[..., None], axis=-1)[..., 0] > 0
        tiles = np.floor((pose[:3, 3] + rays * depth[..., None]) * 1.001).astype(int)
        tiles[np.arange(3) == axis[..., None]] = 0
        shade = np.where(tiles.sum(axis=-1) % 2 == 0, 1.0, 0.6)
        picture = (self.colours[side.astype(int), axis] * shade[..., None]).astype(np.uint8)
        return picture, self._info(pose, depth, realised, collision)

    def _info(self, pose, depth, realised, collision):
        return {
            "depth": depth.astype(np.float32),  # [h, w] metres along the view axis
            "pose": pose,  # [4, 4] camera to world: x right, y down, z forward; metres
            "intrinsics": np.array([FOCAL_LENGTH, FOCAL_LENGTH, 0.5, 0.5], np.float32),
            "camera": self.camera.copy(),  # (x, y, z, yaw, pitch, roll)
            "realised": realised,  # the camera motion that took place; a wall stops a walk
            # "control": the motion that the action commanded, like "realised"; these nine actions need not say it
            "collision": collision,
            "success": bool(self.camera[2] > 2.0),
        }


gym.register("TinyRoom-v0", "tiny_room:TinyRoom")
