"""Maps of places made by hand: metres are to scale, and what is drawn lies where it is."""

from dataclasses import replace

import numpy as np
import pytest

from ws_gym import maps
from ws_gym.maps import Place, draw_map

RED = np.array([200, 0, 0], np.uint8)
SIZE = 512


def place(**changes) -> Place:
    """A camera at the origin that looks ahead, on a path of 2 m, with a red wall 3 m ahead."""
    across = np.linspace(-2, 2, 400)
    wall = np.stack([across, np.zeros(400), np.full(400, 3.0)], 1)
    nobody: np.ndarray = np.zeros(1, bool)
    made = Place(
        points=wall.repeat(4, axis=0),
        colours=np.tile(RED, (1600, 1)),
        is_floor=np.zeros(1600, bool),
        cameras=np.array([[0.0, -2.0, 0.0]]),
        is_real=~nobody,
        is_anchored=nobody,
        is_retrieved=nobody,
        path=np.array([[0.0, -2.0], [0.0, 0.0]]),
        here=np.zeros(3),
        field_of_view=1.4,
        caption="step 8",
    )
    return replace(made, **changes)


def where(picture: np.ndarray, colour, tolerance: int = 12) -> np.ndarray:
    """(column, row) of the pixels of a colour on the map itself, without what is written below: [N, 2]."""
    drawn = picture[: round((1 - maps.FOOTER) * len(picture))].astype(int)
    return np.argwhere((np.abs(drawn - np.asarray(colour)) <= tolerance).all(-1))[:, ::-1]


def metre(picture: np.ndarray) -> float:
    """Pixels of a metre, as the scale bar (of 2 m for this place) says."""
    footer = picture[round((1 - maps.FOOTER) * len(picture)) :]
    is_ink = (footer[: len(footer) // 2] == maps.INK).all(-1)
    return is_ink.sum(1).max() / 2


def test_the_wall_the_camera_and_the_path_lie_where_they_are():
    picture = draw_map(place(), SIZE)
    wall, path = where(picture, RED, 30), where(picture, maps.PATH, 60)
    scale = metre(picture)
    assert np.ptp(wall[:, 0]) == pytest.approx(4 * scale, rel=0.06)
    assert wall[:, 0].mean() == pytest.approx(path[:, 0].mean(), abs=4)
    foot = path[:, 1].max()
    assert foot - wall[:, 1].mean() == pytest.approx(5 * scale, rel=0.08)


def test_turning_the_camera_turns_its_view():
    """The wedge of the field of view is drawn to the side to which the camera looks."""
    bare = place(points=np.zeros((0, 3)), colours=np.zeros((0, 3), np.uint8), is_floor=np.zeros(0, bool))
    means = []
    for yaw in (0, np.pi / 2, np.pi, -np.pi / 2):
        picture = draw_map(replace(bare, here=np.array([0.0, 0.0, yaw])))
        means.append(where(picture, maps.HERE, 40).mean(0))
    ahead, right, behind, left = means
    assert right[0] - left[0] > 15 and behind[1] - ahead[1] > 15
    assert right[0] - ahead[0] == pytest.approx(ahead[0] - left[0], abs=3)


@pytest.mark.parametrize(
    ("role", "colour"), [("is_real", maps.REAL), ("is_anchored", maps.ANCHORED), ("is_retrieved", maps.RETRIEVED)]
)
def test_each_role_of_a_remembered_frame_has_its_colour(role, colour):
    nobody: np.ndarray = np.zeros(1, bool)
    plain = place(is_real=nobody)
    assert not len(where(draw_map(plain), colour)) and len(where(draw_map(plain), maps.KEYFRAME))
    assert len(where(draw_map(replace(plain, **{role: ~nobody})), colour)) > 10


def test_the_floor_is_paler_than_what_stands_on_it():
    floor = draw_map(place(is_floor=np.ones(1600, bool)))
    assert not len(where(floor, RED, 30))
    assert len(where(floor, 0.6 * np.array(maps.PAPER) + 0.4 * RED, 12)) > 100


def test_points_far_from_every_camera_do_not_shrink_the_map():
    near = place()
    far = replace(
        near,
        points=np.concatenate([near.points, [[0.0, 0.0, 400.0]]]),
        colours=np.concatenate([near.colours, RED[None]]),
        is_floor=np.append(near.is_floor, False),
    )
    np.testing.assert_array_equal(draw_map(far), draw_map(near))
