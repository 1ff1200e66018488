"""What a tabletop world is made of: a plan drawn from a seed, free of any physics or graphics library.

Positions are in world axes as everywhere (x right, y down, z forward; metres) with the table's top at y = 0. The plan
is a pure function of the seed and the task; `tabletop_model.py` builds it.
"""

import colorsys
import math
from dataclasses import dataclass

import numpy as np

SHAPES = ("box", "cylinder", "sphere", "capsule", "ellipsoid")
OBJECT_PATTERNS = ("plain", "stripes", "checker", "dots", "marble")
TABLE_PATTERNS = ("wood", "wood", "planks", "marble", "checker", "cloth", "plain")
WALL_PATTERNS = ("plain", "stripes", "bricks", "planks", "cloth")
FLOOR_PATTERNS = ("planks", "checker", "marble", "cloth")
SKINS = ((0.98, 0.80, 0.68), (0.91, 0.68, 0.52), (0.76, 0.54, 0.39), (0.55, 0.37, 0.26), (0.37, 0.25, 0.19))
VIVID = ((0.65, 1.0), (0.7, 1.0))
"""Saturation and value of the object that the tasks are about."""
DULL = ((0.0, 0.22), (0.3, 0.75))
"""Of scenery."""
OBJECT_REGION = ((-0.15, 0.15), (0.0, 0.17))
"""Extent in x and z of the places where objects and targets lie."""

Colour = tuple[float, float, float]
Point = tuple[float, float, float]


@dataclass(frozen=True, kw_only=True, slots=True)
class Surface:
    """A procedural pattern between two colours (RGB in [0, 1]); `detail` seeds the pattern and `repeat` tiles it."""

    pattern: str
    first: Colour
    second: Colour
    detail: int
    repeat: float = 1.0


@dataclass(frozen=True, kw_only=True, slots=True)
class ObjectPlan:
    """A free object: half extents along its own axes (x, height, z; metres), mass (kg), place and heading.

    A capsule lies on its side along x; `size` are half extents for every shape.
    """

    shape: str
    size: Point
    mass: float
    surface: Surface
    place: tuple[float, float]
    heading: float

    @property
    def radius(self) -> float:
        """Of the circle on the table that it covers."""
        return math.hypot(self.size[0], self.size[2]) if self.shape == "box" else max(self.size[0], self.size[2])


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """A whole world. `objects[0]` is the one that the tasks are about; the others are scenery that can be pushed.

    Colour tells them apart, so that a policy (and whoever reads a dream) can see which is meant: the first is vivid,
    scenery is dull.
    """

    objects: tuple[ObjectPlan, ...]
    target: Point
    target_colour: Colour
    table: Surface
    walls: Surface
    floor: Surface
    table_size: tuple[float, float]
    skin: Colour
    sleeve: Surface
    wrist: Point
    fingers: float
    camera: tuple[float, float, float, float, float, float]
    light: Point
    light_colour: Colour
    ambient: Colour


def draw_plan(rng: np.random.Generator, task: str) -> Plan:
    """A random world for "reach", "push" or "pick_place"."""
    places = _scatter(rng, 2 + int(rng.integers(0, 4)))
    first, second = places[0], places[1]
    objects = [_object(rng, first, is_meant=True)] + [_object(rng, place, is_meant=False) for place in places[2:]]
    bare = rng.random() < 0.55
    return Plan(
        objects=tuple(objects),
        target=_target(rng, task, second),
        target_colour=colorsys.hsv_to_rgb(rng.uniform(0.28, 0.42), 0.95, 0.95),
        table=_surface(rng, TABLE_PATTERNS, (0.1, 0.55), (0.45, 0.95), repeat=(1.0, 2.5)),
        walls=_surface(rng, WALL_PATTERNS, (0.1, 0.5), (0.55, 0.95), repeat=(2.0, 5.0)),
        floor=_surface(rng, FLOOR_PATTERNS, (0.05, 0.4), (0.3, 0.8), repeat=(3.0, 6.0)),
        table_size=(float(rng.uniform(0.42, 0.6)), float(rng.uniform(0.3, 0.42))),
        skin=_skin(rng) if bare else _colour(rng, (0.0, 1.0), (0.0, 0.85), (0.25, 0.95)),
        sleeve=_surface(rng, ("plain", "stripes", "cloth"), (0.2, 0.9), (0.25, 0.9)),
        wrist=(float(rng.uniform(0.04, 0.16)), -float(rng.uniform(0.14, 0.2)), float(rng.uniform(-0.16, -0.08))),
        fingers=float(rng.uniform(0.0, 0.25)),
        camera=_camera(rng),
        light=(float(rng.uniform(-0.8, 0.8)), -float(rng.uniform(0.9, 1.6)), float(rng.uniform(-0.4, 0.8))),
        light_colour=_warmth(rng, 0.5, 0.75),
        ambient=_warmth(rng, 0.4, 0.52),
    )


def _scatter(rng, count: int) -> list[tuple[float, float]]:
    """Places at least 12 cm apart; a bounded number of tries, so a crowded table simply gets fewer. At least two."""
    (low_x, high_x), (low_z, high_z) = OBJECT_REGION
    places = [(float(rng.uniform(low_x, high_x)), float(rng.uniform(low_z, high_z)))]
    for _ in range(200):
        place = (float(rng.uniform(low_x, high_x)), float(rng.uniform(low_z, high_z)))
        if min(math.dist(place, other) for other in places) > 0.12:
            places.append(place)
        if len(places) == count:
            return places
    opposite = (math.copysign(0.15, -places[0][0]), 0.08)
    return places if len(places) > 1 else [*places, opposite]


def _target(rng, task: str, place: tuple[float, float]) -> Point:
    height = rng.uniform(0.03, 0.2) if task == "reach" else 0.0
    return (place[0], -float(height), place[1])


def _object(rng, place: tuple[float, float], is_meant: bool) -> ObjectPlan:
    shape = str(rng.choice(SHAPES))
    across, height, along = (float(rng.uniform(*extent)) for extent in ((0.022, 0.03), (0.026, 0.038), (0.022, 0.03)))
    sizes = {
        "box": (across, height, along),
        "cylinder": (across, height, across),
        "sphere": (height * 0.95,) * 3,
        "capsule": (0.03 + along * 0.6, across, across),
        "ellipsoid": (across * 1.2, height * 0.95, along * 1.2),
    }
    return ObjectPlan(
        shape=shape,
        size=sizes[shape],
        mass=float(rng.uniform(0.04, 0.16)) if is_meant else float(rng.uniform(0.1, 0.3)),
        surface=_surface(rng, OBJECT_PATTERNS, *(VIVID if is_meant else DULL), contrast=0.35),
        place=place,
        heading=float(rng.uniform(-0.5, 0.5)),
    )


def _surface(rng, patterns, saturation, value, repeat=(1.0, 1.0), contrast=0.18) -> Surface:
    hue = rng.random()
    first = _colour(rng, (hue, hue), saturation, value)
    shade = float(rng.choice([1 - contrast, 1 + contrast]))
    other = _colour(rng, (hue + 0.3, hue + 0.7), saturation, value) if rng.random() < contrast else first
    second = tuple(float(np.clip(channel * shade, 0.0, 1.0)) for channel in other)
    return Surface(
        pattern=str(rng.choice(patterns)),
        first=first,
        second=(second[0], second[1], second[2]),
        detail=int(rng.integers(2**31)),
        repeat=float(rng.uniform(*repeat)),
    )


def _camera(rng) -> tuple[float, float, float, float, float, float]:
    """A head that looks down on the table: x, y, z (metres), yaw, pitch, roll (radians)."""
    x, height, back = rng.uniform(-0.03, 0.03), rng.uniform(0.36, 0.42), rng.uniform(-0.3, -0.24)
    pitch = -math.atan2(height - 0.04, 0.05 - back) + rng.uniform(-0.04, 0.04)
    return (float(x), -float(height), float(back), float(-x * 1.5 + rng.uniform(-0.05, 0.05)), float(pitch), 0.0)


def _skin(rng) -> Colour:
    one, other = (np.array(SKINS[int(rng.integers(len(SKINS)))]) for _ in range(2))
    red, green, blue = one + rng.uniform(0, 0.4) * (other - one)
    return (float(red), float(green), float(blue))


def _colour(rng, hue, saturation, value) -> Colour:
    return colorsys.hsv_to_rgb(rng.uniform(*hue) % 1.0, rng.uniform(*saturation), rng.uniform(*value))


def _warmth(rng, low, high) -> Colour:
    level, warm = float(rng.uniform(low, high)), float(rng.uniform(-0.05, 0.05))
    return (level + warm, level, level - warm)
