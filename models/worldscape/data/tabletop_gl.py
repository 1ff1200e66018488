"""Draws a tabletop world with MuJoCo's own OpenGL renderer: one pass gives picture and metric depth, without a display.

Multisampling and shadow maps cost nine tenths of the time in software; pictures are drawn larger and averaged
instead, and soft dark discs stand for contact shadows.
"""

# mujoco's compiled module has no stubs.
# pyright: reportAttributeAccessIssue=false

import sys
from typing import Any

import cv2
import mujoco
import numpy as np

from worldscape.data.episode import MAX_DEPTH
from worldscape.data.tabletop_model import FAR, NEAR, PICTURE_PIXELS

SUPERSAMPLING = 2
MAX_GEOMS = 400
SHADOW_HEIGHT = 0.12  # metres above the table at which a shadow has faded


def _make_context():
    """An OpenGL context of its own; on Linux through EGL, which needs no display."""
    if sys.platform == "linux":
        from mujoco.egl import GLContext
    else:
        from mujoco.gl_context import GLContext
    return GLContext(PICTURE_PIXELS, PICTURE_PIXELS)


class TabletopCamera:
    """Draws one model after another into one OpenGL context. Close it before the interpreter exits."""

    def __init__(self) -> None:
        self._gl: Any = _make_context()
        self._context: mujoco.MjrContext | None = None
        self._options = mujoco.MjvOption()
        self._options.sitegroup[:] = 0
        self._view = mujoco.MjvCamera()
        self._view.type = mujoco.mjtCamera.mjCAMERA_FIXED
        self._view.fixedcamid = 0

    def load(self, model: mujoco.MjModel) -> None:
        """Upload the meshes and textures of a model and draw it from now on."""
        self._gl.make_current()
        self._free_context()
        self._model = model
        self._scene = mujoco.MjvScene(model, MAX_GEOMS)
        self._context = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_50.value)
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN.value, self._context)

    def draw(self, data: mujoco.MjData, size: int, shadows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """-> picture uint8 [size, size, 3] and z-depth float32 [size, size] in metres.

        shadows: [N, 4] points above the table (x, y, height in MuJoCo's axes, radius in metres).
        """
        assert self._context is not None
        self._gl.make_current()
        everything = mujoco.mjtCatBit.mjCAT_ALL.value
        mujoco.mjv_updateScene(self._model, data, self._options, None, self._view, everything, self._scene)
        self._num_geoms = self._scene.ngeom
        self._add_shadows(shadows)
        pixels = size * SUPERSAMPLING
        rectangle = mujoco.MjrRect(0, 0, pixels, pixels)
        picture, depth = np.empty((pixels, pixels, 3), np.uint8), np.empty((pixels, pixels), np.float32)
        mujoco.mjr_render(rectangle, self._scene, self._context)
        mujoco.mjr_readPixels(picture, depth, rectangle, self._context)
        small = cv2.resize(picture[::-1], (size, size), interpolation=cv2.INTER_AREA)
        return small, _metres(depth[::-1][::SUPERSAMPLING, ::SUPERSAMPLING])

    def draw_geoms(self, size: int) -> np.ndarray:
        """Which geom shows where in what `draw` has just drawn, shadows apart: int64 [size, size] indices into the
        model, -1 where none does."""
        assert self._context is not None
        self._gl.make_current()
        flags = [mujoco.mjtRndFlag.mjRND_SEGMENT.value, mujoco.mjtRndFlag.mjRND_IDCOLOR.value]
        rectangle, colours = mujoco.MjrRect(0, 0, size, size), np.empty((size, size, 3), np.uint8)
        self._scene.ngeom, self._scene.flags[flags] = self._num_geoms, 1
        mujoco.mjr_render(rectangle, self._scene, self._context)
        self._scene.flags[flags] = 0
        mujoco.mjr_readPixels(colours, None, rectangle, self._context)
        geoms = np.full(1 + self._scene.ngeom, -1)
        for drawn in self._scene.geoms[: self._scene.ngeom]:
            if drawn.objtype == mujoco.mjtObj.mjOBJ_GEOM and drawn.segid >= 0:
                geoms[1 + drawn.segid] = drawn.objid
        return geoms[colours[::-1].astype(np.int64) @ (1, 1 << 8, 1 << 16)]

    def close(self) -> None:
        """Free the context; may be called twice."""
        if self._gl is not None:
            self._gl.make_current()
            self._free_context()
            self._gl.free()
            self._gl = None

    def _free_context(self) -> None:
        if self._context is not None:
            self._context.free()
            self._context = None

    def _add_shadows(self, shadows: np.ndarray) -> None:
        for x, y, height, radius in shadows:
            strength = 0.2 * float(np.clip(1.0 - height / SHADOW_HEIGHT, 0.0, 1.0))
            if strength <= 0.01 or self._scene.ngeom >= MAX_GEOMS:
                continue
            disc = self._scene.geoms[self._scene.ngeom]
            mujoco.mjv_initGeom(
                disc,
                mujoco.mjtGeom.mjGEOM_CYLINDER,
                np.array([radius, radius, 0.0002]),
                np.array([x, y, 0.001]),
                np.eye(3).ravel(),
                np.array([0.0, 0.0, 0.0, strength], np.float32),
            )
            self._scene.ngeom += 1


def _metres(buffer: np.ndarray) -> np.ndarray:
    """OpenGL's depth buffer in [0, 1] -> metres along the view axis."""
    depth = NEAR * FAR / (FAR - buffer.astype(np.float64) * (FAR - NEAR))
    return np.where(buffer >= 1.0, MAX_DEPTH, depth).astype(np.float32)
