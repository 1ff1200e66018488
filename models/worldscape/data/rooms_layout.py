"""What a rooms world is made of: a plan drawn from a seed, free of any graphics library.

The plan names rooms, doorways, objects and light; `rooms_gl.py` builds it. Everything is a pure function of the seed.
"""

import colorsys
from dataclasses import dataclass, field

import numpy as np

WALLS = ("brick_wall", "concrete", "drywall", "stucco", "wood", "wood_planks", "marble", "cinder_blocks", "cardboard")
FLOORS = ("floor_tiles_bw", "wood", "concrete_tiles", "marble", "cardboard", "stucco", "drywall")
CEILINGS = ("concrete_tiles", "drywall", "wood_planks", "stucco", "white")
OUTDOOR_WALLS = ("brick_wall", "cinder_blocks", "wood_planks", "rock", "stucco", "wood")
OUTDOOR_FLOORS = ("grass", "grass", "grass", "asphalt", "rock", "wood_planks")
FURNITURE = (("office_desk", 1.0), ("office_chair", 1.1), ("barrel", 1.0), ("potion", 0.8), ("medkit", 0.5))
GARDEN = (("tree", 3.2), ("tree_pine", 3.4), ("barrel", 1.0), ("cone", 0.8), ("barrier", 1.0), ("duckie", 0.9))
BALLS = ("blue", "green", "yellow", "purple", "grey")


@dataclass(frozen=True, kw_only=True, slots=True)
class Surface:
    """A texture name, its tint (RGB in [0, 1]) and how often it repeats (1 = MiniWorld's density)."""

    texture: str
    tint: tuple[float, float, float]
    repeat: float


@dataclass(frozen=True, kw_only=True, slots=True)
class RoomPlan:
    """One rectangular room: extents in metres, wall height, surfaces; no ceiling in the open air."""

    min_x: float
    max_x: float
    min_z: float
    max_z: float
    height: float
    walls: Surface
    accent: Surface
    floor: Surface
    ceiling: Surface | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Doorway:
    """An opening between rooms `a` and `b`: its axis ("x" or "z"), extent along it, and height in metres."""

    a: int
    b: int
    axis: str
    low: float
    high: float
    height: float


@dataclass(frozen=True, kw_only=True, slots=True)
class ObjectPlan:
    """Something that stands in a room: a mesh, a ball, or a tinted block of the given size in metres."""

    kind: str
    name: str = ""
    size: tuple[float, float, float] = (1.0, 1.0, 1.0)
    tint: tuple[float, float, float] = (1.0, 1.0, 1.0)


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """A whole world: rooms, doorways, objects and light."""

    rooms: list[RoomPlan]
    doorways: list[Doorway]
    objects: list[ObjectPlan]
    sky: tuple[float, float, float]
    light_position: tuple[float, float, float]
    light_colour: tuple[float, float, float]
    ambient: tuple[float, float, float]
    outdoor: bool = field(default=False)


def draw_plan(rng: np.random.Generator) -> Plan:
    """A random world; one in four is a garden under the sky."""
    outdoor = bool(rng.random() < 0.25)
    cells, links = _garden_cells(rng) if outdoor else _indoor_cells(rng)
    rooms = [_furnish_room(rng, cell, outdoor) for cell in cells]
    doorways = [_doorway(rng, cells, a, b) for a, b in links]
    centre_x, centre_z = _mean_centre(cells)
    return Plan(
        rooms=rooms,
        doorways=doorways,
        objects=_objects(rng, cells, outdoor),
        sky=_colour(rng, (0.5, 0.62) if rng.random() < 0.7 else (0.02, 0.12), (0.35, 0.75), (0.8, 1.0)),
        light_position=(centre_x + rng.uniform(-3, 3), rng.uniform(3, 6), centre_z + rng.uniform(-3, 3)),
        light_colour=_warmth(rng, 0.45, 0.75),
        ambient=_warmth(rng, 0.45, 0.6),
        outdoor=outdoor,
    )


def _colour(rng, hue, saturation, value) -> tuple[float, float, float]:
    return colorsys.hsv_to_rgb(rng.uniform(*hue) % 1.0, rng.uniform(*saturation), rng.uniform(*value))


def _warmth(rng, low, high) -> tuple[float, float, float]:
    level, warm = rng.uniform(low, high), rng.uniform(-0.06, 0.06)
    return (level + warm, level, level - warm)


def _indoor_cells(rng):
    """Floor plans as (min_x, max_x, min_z, max_z) rectangles that share walls, and the pairs to connect."""
    w, d = rng.uniform(4.5, 7.5, 2), rng.uniform(4.5, 7.5, 2)
    shape = rng.choice(["one", "two", "corner", "square"], p=[0.3, 0.3, 0.2, 0.2])
    a = (0.0, w[0], 0.0, d[0])
    b = (w[0], w[0] + w[1], 0.0, d[0])
    c = (0.0, w[0], d[0], d[0] + d[1])
    e = (w[0], w[0] + w[1], d[0], d[0] + d[1])
    if shape == "one":
        return [(0.0, rng.uniform(5.5, 9.5), 0.0, rng.uniform(5.5, 9.5))], []
    if shape == "two":
        return [a, b], [(0, 1)]
    if shape == "corner":
        return [a, b, c], [(0, 1), (0, 2)]
    return [a, b, c, e], [(0, 1), (0, 2), (1, 3), (2, 3)]


def _garden_cells(rng):
    w, d = rng.uniform(9.0, 14.0, 2)
    if rng.random() < 0.6:
        return [(0.0, w, 0.0, d)], []
    return [(0.0, w, 0.0, d), (w, w + rng.uniform(6.0, 9.0), 0.0, d)], [(0, 1)]


def _furnish_room(rng, cell, outdoor: bool) -> RoomPlan:
    hue = rng.random()
    tint = _colour(rng, (hue, hue), (0.15, 0.65), (0.75, 1.0))
    accent = _colour(rng, (hue + 0.3, hue + 0.7), (0.3, 0.75), (0.7, 1.0))
    texture = str(rng.choice(OUTDOOR_WALLS if outdoor else WALLS))
    repeat = rng.uniform(0.25, 0.6)
    floor_hue = rng.random()
    floor_saturation = (0.0, 0.1) if outdoor else (0.0, 0.45)
    floor = Surface(
        texture=str(rng.choice(OUTDOOR_FLOORS if outdoor else FLOORS)),
        tint=_colour(rng, (floor_hue, floor_hue), floor_saturation, (0.8, 1.0)),
        repeat=rng.uniform(0.25, 0.6),
    )
    ceiling = Surface(
        texture=str(rng.choice(CEILINGS)),
        tint=_colour(rng, (0, 1), (0.0, 0.2), (0.75, 1.0)),
        repeat=rng.uniform(0.25, 0.6),
    )
    return RoomPlan(
        min_x=cell[0],
        max_x=cell[1],
        min_z=cell[2],
        max_z=cell[3],
        height=rng.uniform(1.6, 3.2) if outdoor else rng.uniform(2.5, 3.4),
        walls=Surface(texture=texture, tint=tint, repeat=repeat),
        accent=Surface(texture=texture, tint=accent, repeat=repeat),
        floor=floor,
        ceiling=None if outdoor else ceiling,
    )


def _doorway(rng, cells, a: int, b: int) -> Doorway:
    first, second = cells[a], cells[b]
    axis = "z" if abs(first[1] - second[0]) < 1e-9 else "x"
    low, high = (first[2], first[3]) if axis == "z" else (first[0], first[1])
    width = rng.uniform(1.6, 2.6)
    start = rng.uniform(low + 0.5, high - 0.5 - width)
    return Doorway(a=a, b=b, axis=axis, low=start, high=start + width, height=rng.uniform(1.9, 2.4))


def _objects(rng, cells, outdoor: bool) -> list[ObjectPlan]:
    area = sum((c[1] - c[0]) * (c[3] - c[2]) for c in cells)
    count = int(np.clip(area * rng.uniform(0.05, 0.11), 2, 9))
    return [_object(rng, outdoor) for _ in range(count)]


def _object(rng, outdoor: bool) -> ObjectPlan:
    kind = rng.choice(["mesh", "ball", "block", "pillar"], p=[0.45, 0.15, 0.25, 0.15])
    if kind == "mesh":
        name, height = (GARDEN if outdoor else FURNITURE)[rng.integers(len(GARDEN if outdoor else FURNITURE))]
        return ObjectPlan(kind="mesh", name=name, size=(1.0, height * rng.uniform(0.85, 1.15), 1.0))
    if kind == "ball":
        return ObjectPlan(kind="ball", name=str(rng.choice(BALLS)), size=(1.0, rng.uniform(0.5, 0.9), 1.0))
    tint = _colour(rng, (0.1, 0.9), (0.5, 1.0), (0.6, 1.0))
    if kind == "block":
        return ObjectPlan(kind="block", size=tuple(rng.uniform(0.5, 1.1, 3)), tint=tint)
    side = rng.uniform(0.3, 0.5)
    return ObjectPlan(kind="block", size=(side, rng.uniform(1.8, 2.4), side), tint=tint)


def _mean_centre(cells) -> tuple[float, float]:
    return (
        float(np.mean([(c[0] + c[1]) / 2 for c in cells])),
        float(np.mean([(c[2] + c[3]) / 2 for c in cells])),
    )
