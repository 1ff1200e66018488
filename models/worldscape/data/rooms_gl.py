"""Builds and draws a rooms plan with MiniWorld: one pass gives picture and depth, headless where there is no display.

MiniWorld keeps one display list for all its worlds; `RoomsWorld` recompiles its own whenever another world drew last.
"""

# MiniWorld types positions and directions as None (they are arrays once placed) and angles as int.
# pyright: reportAttributeAccessIssue=false, reportOptionalMemberAccess=false, reportOperatorIssue=false
# pyright: reportGeneralTypeIssues=false, reportArgumentType=false, reportCallIssue=false

import contextlib
import io
import math
import os
from collections.abc import Iterator
from types import SimpleNamespace
from typing import ClassVar
from unittest.mock import patch

import cv2
import numpy as np

from worldscape.conditioning.camera import pose_from_state_numpy, square_intrinsics
from worldscape.data.episode import MAX_DEPTH
from worldscape.data.rooms_layout import ObjectPlan, Plan, RoomPlan, draw_plan

try:
    import pyglet

    if not os.environ.get("DISPLAY"):
        pyglet.options["headless"] = True
    from miniworld.entity import Ball, Box, Entity, MeshEnt
    from miniworld.miniworld import MiniWorldEnv, Room
    from pyglet import gl, image
except ImportError as error:
    raise ImportError(
        f"WorldScape-Rooms needs MiniWorld and OpenGL ({error}); install them with `pip install worldscape[sim]` and, "
        "on Debian, `apt-get install libegl1 libgl1 libgl1-mesa-dri libopengl0 libglu1-mesa`."
    ) from error

NEAR, FAR = 0.1, 60.0  # metres; the depth buffer has 16 bits, so NEAR decides the precision far away
GOAL_SIZE = 0.8
PLACE_TRIES = 60


class PngDecoder(image.codecs.ImageDecoder):
    """Reads textures with OpenCV: pyglet's own way to RGBA takes two seconds a texture."""

    def get_file_extensions(self):
        return [".png"]

    def decode(self, file, filename):
        picture = cv2.imdecode(np.frombuffer(file.read(), np.uint8), cv2.IMREAD_COLOR)
        rows_upwards = cv2.flip(cv2.cvtColor(picture, cv2.COLOR_BGR2RGBA), 0)
        return image.ImageData(picture.shape[1], picture.shape[0], "RGBA", rows_upwards.tobytes())


def _prefer_our_decoder() -> None:
    decoders = image.codecs._codecs._decoder_extensions.setdefault(".png", [])
    if not any(isinstance(decoder, PngDecoder) for decoder in decoders):
        decoders.insert(0, PngDecoder())


@contextlib.contextmanager
def _without_text() -> Iterator[None]:
    """MiniWorld makes a label for a window of its own, which wants fonts that a bare machine lacks."""
    with patch.object(pyglet, "text", SimpleNamespace(Label=lambda *_, **__: None)):
        yield


class TintedRoom(Room):
    """A MiniWorld room whose surfaces carry a tint and a texture density; one wall has the accent colour."""

    def __init__(self, plan: RoomPlan):
        outline = np.array(
            [[plan.max_x, plan.max_z], [plan.max_x, plan.min_z], [plan.min_x, plan.min_z], [plan.min_x, plan.max_z]]
        )
        super().__init__(
            outline,
            wall_height=plan.height,
            floor_tex=plan.floor.texture,
            wall_tex=plan.walls.texture,
            ceil_tex=(plan.ceiling or plan.walls).texture,
            no_ceiling=plan.ceiling is None,
        )
        self.plan = plan

    def _gen_static_data(self, params, rng):
        super()._gen_static_data(params, rng)
        self.wall_texcs = self.wall_texcs * self.plan.walls.repeat
        self.floor_texcs = self.floor_texcs * self.plan.floor.repeat
        self.ceil_texcs = self.ceil_texcs * (self.plan.ceiling or self.plan.walls).repeat

    def _render(self):
        self._draw(self.floor_tex, self.plan.floor.tint, (0, 1, 0), self.floor_verts, self.floor_texcs)
        if self.plan.ceiling is not None:
            self._draw(self.ceil_tex, self.plan.ceiling.tint, (0, -1, 0), self.ceil_verts, self.ceil_texcs)
        for i in range(0, len(self.wall_verts), 4):
            normal = self.wall_norms[i]
            tint = self.plan.accent.tint if normal[0] > 0.5 else self.plan.walls.tint
            self._draw(self.wall_tex, tint, normal, self.wall_verts[i : i + 4], self.wall_texcs[i : i + 4])

    @staticmethod
    def _draw(texture, tint, normal, vertices, coordinates) -> None:
        gl.glColor3f(*tint)
        texture.bind()
        gl.glBegin(gl.GL_POLYGON)
        gl.glNormal3f(*normal)
        for vertex, coordinate in zip(vertices, coordinates, strict=True):
            gl.glTexCoord2f(*coordinate)
            gl.glVertex3f(*vertex)
        gl.glEnd()


class Block(Box):
    """A box of any tint."""

    def __init__(self, size, tint):
        super().__init__("grey", size=np.array(size))
        self.color_vec = np.array(tint)

    @property
    def is_static(self) -> bool:
        """Blocks stay where they stand, so they are compiled into the display list."""
        return True

    def randomize(self, params, rng):
        """Keep the tint that was given."""


class RoomsWorld(MiniWorldEnv):
    """A built plan: where the agent is, what it sees, what it runs into. Positions inside are MiniWorld's (y up)."""

    _drawn_last: ClassVar["RoomsWorld | None"] = None

    def __init__(self, size: int, field_of_view: float):
        self._plan: Plan | None = None
        self._rng = np.random.default_rng(0)
        self._field_of_view = field_of_view
        self._layout_seed = 0
        _prefer_our_decoder()
        with contextlib.redirect_stdout(io.StringIO()), _without_text():  # MiniWorld prints about multisampling
            super().__init__(obs_width=size, obs_height=size, window_width=256, window_height=256)

    def build(self, layout_seed: int) -> None:
        """Make the world of this seed."""
        self._layout_seed = layout_seed
        self.reset(seed=layout_seed)

    def move(self, control: np.ndarray, max_pitch: float) -> np.ndarray:
        """Turn, then walk unless something is in the way; control [6] -> realised control [6] (metres, radians)."""
        realised = np.zeros(6, np.float32)
        self.agent.dir -= float(control[3])
        realised[3] = control[3]
        pitch = math.radians(self.agent.cam_pitch)
        new_pitch = float(np.clip(pitch + control[4], -max_pitch, max_pitch))
        self.agent.cam_pitch = math.degrees(new_pitch)
        realised[4] = new_pitch - pitch
        if control[0] or control[2]:
            if self.move_agent(float(control[2]), float(control[0])):
                realised[[0, 2]] = control[[0, 2]]
        return realised

    def observe(self) -> tuple[np.ndarray, np.ndarray]:
        """-> picture uint8 [h, w, 3] and z-depth float32 [h, w] in metres, from one rendering pass."""
        picture = self.render_obs()
        depth = self.obs_fb.get_depth_map(NEAR, FAR)[..., 0]
        return picture, np.minimum(depth, MAX_DEPTH).astype(np.float32)

    def picture(self) -> np.ndarray:
        """A larger picture for people -> uint8 [256, 256, 3]."""
        return self.render_obs(self.vis_fb)

    def camera(self) -> np.ndarray:
        """-> float32 [6]: x, y, z (metres; x right, y down, z forward), yaw, pitch, roll (radians)."""
        x, y, z = self.agent.cam_pos
        return np.array([z, -y, x, -self.agent.dir, math.radians(self.agent.cam_pitch), 0.0], np.float32)

    def pose(self) -> np.ndarray:
        """-> camera-to-world float32 [4, 4], OpenCV axes."""
        return pose_from_state_numpy(self.camera())

    def intrinsics(self) -> np.ndarray:
        """-> float32 [4]: fx, fy, cx, cy in units of the picture's size."""
        return square_intrinsics(self._field_of_view)

    def goal_position(self) -> np.ndarray:
        """-> float32 [3]: the red box's centre on the floor, in the same axes as `camera`."""
        x, y, z = self._goal.pos
        return np.array([z, -y, x], np.float32)

    def goal_distance(self) -> float:
        """Metres on the floor plan between the agent and the red box's centre."""
        return float(np.hypot(*(self._goal.pos - self.agent.pos)[[0, 2]]))

    def reached_goal(self) -> bool:
        """Whether the red box is within one step's reach."""
        return self.goal_distance() < self._goal.radius + self.agent.radius + 0.3

    def clearance(self, heading: float, limit: float = 6.0) -> float:
        """Free metres from the agent along a yaw heading (radians, 0 = +z), up to `limit`."""
        direction = np.array([math.cos(heading), 0.0, math.sin(heading)])
        for distance in np.arange(0.5, limit, 0.5):
            if self.intersect(self.agent, self.agent.pos + direction * distance, self.agent.radius):
                return float(distance - 0.5)
        return limit

    def render_obs(self, frame_buffer=None):
        """Draw the agent's view with our own field of view and depth range -> uint8 [h, w, 3]."""
        frame_buffer = frame_buffer or self.obs_fb
        self.shadow_window.switch_to()
        if RoomsWorld._drawn_last is not self:
            self._render_static()
        frame_buffer.bind()
        gl.glClearColor(*self.sky_color, 1.0)
        gl.glClearDepth(1.0)
        gl.glClear(gl.GL_COLOR_BUFFER_BIT | gl.GL_DEPTH_BUFFER_BIT)
        gl.glMatrixMode(gl.GL_PROJECTION)
        gl.glLoadIdentity()
        gl.gluPerspective(self._field_of_view, frame_buffer.width / frame_buffer.height, NEAR, FAR)
        gl.glMatrixMode(gl.GL_MODELVIEW)
        gl.glLoadIdentity()
        gl.gluLookAt(*self.agent.cam_pos, *(self.agent.cam_pos + self.agent.cam_dir), 0.0, 1.0, 0.0)
        return self._render_world(frame_buffer, render_agent=False)

    def close(self) -> None:
        """Close the hidden window."""
        if RoomsWorld._drawn_last is self:
            RoomsWorld._drawn_last = None
        self.shadow_window.close()

    def _render_static(self):
        super()._render_static()
        RoomsWorld._drawn_last = self

    def _gen_world(self) -> None:
        rng = np.random.default_rng([20261122, self._layout_seed])
        plan = draw_plan(rng)
        self._plan, self._rng = plan, rng
        self.rooms.extend(TintedRoom(room) for room in plan.rooms)
        for door in plan.doorways:
            extent = {f"min_{door.axis}": door.low, f"max_{door.axis}": door.high}
            self.connect_rooms(self.rooms[door.a], self.rooms[door.b], max_y=door.height, **extent)
        self._gen_static_data()
        for item in plan.objects:
            self._place(self._entity(item))
        self._goal = Box("red", size=GOAL_SIZE)
        if not self._place(self._goal):
            self._goal.pos, self._goal.dir = self._room_centre(self.rooms[-1]), 0.0
            self.entities.append(self._goal)
        self._place_agent()

    def _entity(self, item: ObjectPlan) -> Entity:
        if item.kind == "mesh":
            return MeshEnt(item.name, height=item.size[1], static=True)
        if item.kind == "ball":
            return Ball(item.name, size=item.size[1])
        return Block(item.size, item.tint)

    def _place(self, entity: Entity, margin: float = 0.5) -> bool:
        """Try a bounded number of free places; a crowded room simply gets fewer objects."""
        for _ in range(PLACE_TRIES):
            room = self.rooms[int(self._rng.choice(len(self.rooms), p=self.room_probs))]
            position = self._rng.uniform([room.min_x, 0, room.min_z], [room.max_x, 0, room.max_z])
            if not self.intersect(entity, position, entity.radius + margin):
                entity.pos, entity.dir = position, float(self._rng.uniform(-math.pi, math.pi))
                self.entities.append(entity)
                return True
        return False

    def _place_agent(self) -> None:
        """Of a few free places and headings take the one with the longest free path ahead."""
        if not self._place(self.agent, margin=0.2):
            self.agent.pos, self.agent.dir = self._room_centre(self.rooms[0]), 0.0
            self.entities.append(self.agent)
        best = (-1.0, self.agent.pos, 0.0)
        for _ in range(4):
            for heading in self._rng.uniform(-math.pi, math.pi, 6):
                clear = self.clearance(float(heading))
                best = max(best, (clear, self.agent.pos, float(heading)), key=lambda candidate: candidate[0])
            self.entities.remove(self.agent)
            if not self._place(self.agent, margin=0.2):
                self.entities.append(self.agent)
        self.agent.pos, self.agent.dir = best[1], -best[2]

    @staticmethod
    def _room_centre(room) -> np.ndarray:
        return np.array([room.mid_x, 0.0, room.mid_z])

    def reset(self, *, seed=None, options=None):
        """MiniWorld's constructor resets once; the world is then rebuilt by `build`."""
        result = super().reset(seed=seed, options=options)
        plan = self._plan
        assert plan is not None
        self.sky_color = np.array(plan.sky)
        self.light_pos = list(plan.light_position)
        self.light_color = np.array(plan.light_colour)
        self.light_ambient = np.array(plan.ambient)
        self._render_static()
        return result
