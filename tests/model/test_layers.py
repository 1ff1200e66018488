"""Hands in remembered pictures: whose pixels are whose, and where they are shown again."""

import torch

from worldscape.conditioning.hand_model import NUM_PARTS
from worldscape.conditioning.layers import (
    FLESH,
    NOBODY,
    OBJECT,
    OBJECT_RIM,
    RIM,
    Layers,
    Limbs,
    Pictures,
    Thing,
    owned_by,
    silhouettes,
    split_layers,
)
from worldscape.conditioning.reproject import Anchor, decode_depth, encode_depth, reproject, settle
from worldscape.conditioning.reproject_fast import reproject_fast

SIZE = 32
HERE = torch.eye(4)[None]
INTRINSICS = torch.tensor([[1.0, 1.0, 0.5, 0.5]])
NEAR, FAR = 0.4, 0.8  # metres: the hand, and the wall behind it and its forearm; a pixel is 1/80 m wide at the hand
PIXEL = NEAR / SIZE
HAND, WALL = 0.9, -0.5
RIGHT = slice(NUM_PARTS + 1, 2 * NUM_PARTS + 1)  # owners of the right hand's pixels


def limbs_at(column: float, present: bool = True, rows: tuple[int, ...] = (1,)) -> Limbs:
    """A right hand of 6 x 6 pixels around a column of the middle row, its forearm away from the camera."""
    wrist = torch.eye(4)
    wrist[:3, :3] = torch.tensor([[1.0, 0.0, 0.0], [0.0, -1.0, 0.0], [0.0, 0.0, -1.0]])
    wrist[:3, 3] = torch.tensor([(column - SIZE / 2) * PIXEL, 0.0, NEAR])
    across, down = torch.linspace(-1.5, 1.5, 5) * PIXEL, torch.linspace(-1.5, 1.5, 4) * PIXEL  # cores stay in the hand
    grid = torch.cartesian_prod(across, down, torch.zeros(1))
    points = torch.cat([wrist[None, :3, 3], wrist[:3, 3] + grid])
    parts, keypoints = torch.eye(4).repeat(1, 2, 16, 1, 1), torch.zeros(1, 2, 21, 3)
    parts[0, 1], keypoints[0, 1] = wrist, points
    return Limbs(parts, keypoints, torch.tensor([[False, present]]), rows)


def picture(column: int | None) -> torch.Tensor:
    """A wall, and a square hand of 6 x 6 pixels around this column, [1, 4, h, w]."""
    rgbd = torch.full((1, 4, SIZE, SIZE), WALL)
    rgbd[:, 3] = encode_depth(torch.tensor(FAR))
    if column is not None:
        rgbd[:, :3, 13:19, column - 3 : column + 3] = HAND
        rgbd[:, 3, 13:19, column - 3 : column + 3] = encode_depth(torch.tensor(NEAR))
    return rgbd


def seen_with(rgbd: torch.Tensor, limbs: Limbs) -> Pictures:
    """One picture [1, 4, h, w] with these hands in it."""
    eye = torch.eye(4)[None]
    owner = owned_by(decode_depth(rgbd[:, 3]), eye, INTRINSICS, limbs)
    return Pictures(rgbd[:, None], eye[:, None], torch.tensor([[True]]), owner[:, None], limbs.moving()[:, None])


def is_right(owner: torch.Tensor) -> torch.Tensor:
    return (owner >= RIGHT.start) & (owner < RIGHT.stop)


def remember(*shown: tuple[int | None, Limbs]) -> Pictures:
    """Pictures from one camera, in this order."""
    parts = [seen_with(picture(column), limbs) for column, limbs in shown]
    return Pictures(*(torch.cat(part, 1) for part in zip(*parts, strict=True)))


def check_shown(rgbd: torch.Tensor, expected: torch.Tensor, colours: float = 2e-3) -> None:
    """The expected picture."""
    torch.testing.assert_close(rgbd[:, :3], expected[:, :3], atol=colours, rtol=0)
    torch.testing.assert_close(rgbd[:, 3], expected[:, 3], atol=2e-3, rtol=0)


def rebuild(layers: Layers):
    return reproject(*layers, torch.eye(4)[None], INTRINSICS)


def test_a_hand_owns_its_pixels_and_a_rim_of_one():
    rgbd = picture(16)  # in the middle, where the forearm lies hidden behind the hand
    owner = owned_by(decode_depth(rgbd[:, 3]), torch.eye(4)[None], INTRINSICS, limbs_at(16))
    assert owner.dtype == torch.uint8
    hand, rim = torch.zeros(2, SIZE, SIZE, dtype=torch.bool)
    rim[12:20, 12:20] = hand[13:19, 13:19] = True
    assert torch.equal(is_right(owner[0]), hand) and torch.equal(owner[0] == RIM, rim & ~hand)
    assert (owner[0][~rim] == NOBODY).all()


def test_the_rim_is_wider_in_a_dreamed_picture():
    rgbd = picture(16)
    real, dreamed = (
        owned_by(decode_depth(rgbd[:, 3]), torch.eye(4)[None], INTRINSICS, limbs_at(16), is_real)
        for is_real in (True, False)
    )
    assert torch.equal(is_right(real), is_right(dreamed))
    rim = torch.zeros(SIZE, SIZE, dtype=torch.bool)
    rim[10:22, 10:22] = True
    assert torch.equal(dreamed[0] == RIM, rim & ~is_right(real[0]))


def test_who_is_absent_owns_nothing_and_who_is_far_neither():
    depth, eye = decode_depth(picture(10)[:, 3]), torch.eye(4)[None]
    assert not owned_by(depth, eye, INTRINSICS, limbs_at(10, present=False)).any()
    aside = limbs_at(10)
    above = aside._replace(
        keypoints=aside.keypoints - torch.tensor([0.0, 0.0, 2 * FLESH + NEAR]),
        parts=aside.parts - torch.tensor([[0.0] * 4, [0.0] * 4, [0.0, 0.0, 0.0, 1.0], [0.0] * 4]),
    )
    assert not owned_by(depth, eye, INTRINSICS, above).any()


def test_a_hand_is_taken_along_and_older_pictures_show_what_was_behind_it():
    """It was at column 10, and before at column 24; it is at 16 now."""
    still = remember((10, limbs_at(10)), (24, limbs_at(24)))
    anchor = rebuild(split_layers(still, still, limbs_at(16), HERE, INTRINSICS))
    assert float(anchor.mask.min()) == 1.0
    check_shown(anchor.rgbd, picture(16))


def test_what_no_picture_showed_behind_the_hand_stays_open():
    still = remember((10, limbs_at(10)))
    anchor = rebuild(split_layers(still, still, limbs_at(24), HERE, INTRINSICS))
    hole = anchor.mask[0, 0] == 0
    assert hole[13:19, 7:13].all() and int(hole.sum()) <= 72
    torch.testing.assert_close(anchor.rgbd[0, :3, 13:19, 21:27], torch.full((3, 6, 6), HAND), atol=2e-3, rtol=0)


def test_a_hand_that_turns_is_shown_turned():
    """A quarter turn about the axis of view turns a bar into an upright one."""
    limbs, turn = limbs_at(16), torch.eye(4)
    turn[:2, :2] = torch.tensor([[0.0, -1.0], [1.0, 0.0]])
    bar = torch.tensor([-4.5, -2.0, 0.0, 2.0, 4.5]) * PIXEL
    points = torch.stack([bar.repeat(5)[:21], torch.zeros(21)], -1)
    limbs.keypoints[0, 1, :, :2], limbs.keypoints[0, 1, :, 2] = points, NEAR
    rgbd = picture(None)
    rgbd[:, :3, 15:17, 11:21] = HAND
    rgbd[:, 3, 15:17, 11:21] = encode_depth(torch.tensor(NEAR))
    owner = owned_by(decode_depth(rgbd[:, 3]), torch.eye(4)[None], INTRINSICS, limbs)
    seen = Pictures(
        rgbd[:, None], torch.eye(4)[None, None], torch.tensor([[True]]), owner[:, None], limbs.moving()[:, None]
    )
    turned = limbs._replace(parts=turn @ limbs.parts)
    anchor = rebuild(split_layers(seen, seen, turned, HERE, INTRINSICS))
    torch.testing.assert_close(anchor.rgbd[0, :3, 11:21, 15:17], torch.full((3, 10, 2), HAND), atol=2e-3, rtol=0)


def test_rows_without_hands_keep_their_pictures():
    still = remember((10, limbs_at(10, present=False)), (24, limbs_at(24, present=False)))
    layers = split_layers(still, still, limbs_at(16, present=False), HERE, INTRINSICS)
    assert not layers.valid[:, :1].any() and layers.valid[:, 1:].all()
    expected = reproject(still.rgbd, still.poses, still.valid, torch.eye(4)[None], INTRINSICS)
    anchor = rebuild(layers)
    assert torch.equal(anchor.rgbd, expected.rgbd) and torch.equal(anchor.mask, expected.mask)


def test_a_finger_that_was_stretched_is_shown_bent():
    """The first picture has a finger where the hand has none now: its part has moved into the fist."""
    fist, stretched = limbs_at(16), limbs_at(16)
    opened = picture(16)
    opened[:, :3, 10:13, 15:17] = HAND
    opened[:, 3, 10:13, 15:17] = encode_depth(torch.tensor(NEAR))
    stretched.keypoints[0, 1, 8] = torch.tensor([0.0, -4.5 * PIXEL, NEAR])
    stretched.parts[0, 1, 4:7, 1, 3] -= 3 * PIXEL
    owner = owned_by(decode_depth(opened[:, 3]), HERE, INTRINSICS, stretched)
    assert is_right(owner[0, 11:13, 15:17]).all() and len(owner[0, 10:18, 15:17].unique()) > 1
    parts = stretched.moving()[:, None]
    before = Pictures(opened[:, None], HERE[:, None], torch.tensor([[True]]), owner[:, None], parts)
    wall = seen_with(picture(None), limbs_at(16, present=False))
    anchor = rebuild(split_layers(wall, before, fist, HERE, INTRINSICS))
    check_shown(anchor.rgbd, picture(16), colours=0.15)  # bicubic overshoot at the finger's edge


def thing_at(column: float, moved: float = 0.0, present: bool = True, table: float = 1.0) -> Thing:
    """An object in the middle row, moved to the right by so many pixels since the first picture."""
    centre = torch.tensor([[(column - SIZE / 2) * PIXEL, 0.0, NEAR]])
    shift = torch.tensor([[moved * PIXEL, 0.0, 0.0]])
    return Thing(centre, shift, torch.tensor([table]), torch.tensor([present]))


def with_thing(thing: Thing | None) -> Limbs:
    """A hand out of sight, behind the camera, and the object."""
    limbs = limbs_at(16)
    back = torch.tensor([0.0, 0.0, -5 * NEAR])
    parts = limbs.parts.clone()
    parts[..., :3, 3] += back
    return limbs._replace(parts=parts, keypoints=limbs.keypoints + back, thing=thing)


def test_an_object_owns_what_is_around_it_above_the_table():
    rgbd = picture(16)
    owner = owned_by(decode_depth(rgbd[:, 3]), HERE, INTRINSICS, with_thing(thing_at(16)))
    assert (owner[0, 13:19, 13:19] == OBJECT).all() and (owner[0, 12, 12:20] == OBJECT_RIM).all()
    assert int((owner == OBJECT).sum()) == 36
    table = thing_at(16, table=0.0)  # the lower half of it would be the table
    lower = owned_by(decode_depth(rgbd[:, 3]), HERE, INTRINSICS, with_thing(table))
    assert (lower[0, 13:15, 13:19] == OBJECT).all() and not (lower[0, 16:] == OBJECT).any()
    for nothing in (thing_at(16, present=False), None):
        limbs = with_thing(nothing)
        assert not (owned_by(decode_depth(rgbd[:, 3]), HERE, INTRINSICS, limbs) >= OBJECT).any()


def test_what_a_hand_holds_is_the_hands_first():
    limbs = limbs_at(16)
    alone = owned_by(decode_depth(picture(16)[:, 3]), HERE, INTRINSICS, limbs)
    both = owned_by(decode_depth(picture(16)[:, 3]), HERE, INTRINSICS, limbs._replace(thing=thing_at(16)))
    assert torch.equal(both[alone > NOBODY], alone[alone > NOBODY])


def test_an_object_that_was_moved_is_shown_where_it_is_and_not_where_it_was():
    """It was at column 10 and is at 20; what it stood before is open, or shown by a picture from before it came."""
    seen = seen_with(picture(10), with_thing(thing_at(10)))
    now = with_thing(thing_at(20, moved=10))
    anchor = rebuild(split_layers(seen, seen, now, HERE, INTRINSICS))
    torch.testing.assert_close(anchor.rgbd[0, :3, 13:19, 17:23], torch.full((3, 6, 6), HAND), atol=2e-3, rtol=0)
    assert (anchor.mask[0, 0, 12:20, 6:14] == 0).all()
    empty = seen_with(picture(None), with_thing(thing_at(10, present=False)))
    both = Pictures(*(torch.cat(part, 1) for part in zip(seen, empty, strict=True)))
    check_shown(rebuild(split_layers(both, both, now, HERE, INTRINSICS)).rgbd, picture(20))


def test_an_object_that_stands_still_is_part_of_the_scene():
    seen = seen_with(picture(10), with_thing(thing_at(10)))
    layers = split_layers(seen, seen, with_thing(thing_at(10)), HERE, INTRINSICS)
    assert layers.valid[0, 1].all() and not layers.valid[0, 0].any()
    check_shown(rebuild(layers).rgbd, picture(10))


def test_the_rim_is_of_use_to_neither_layer():
    """It does not move with the hand, nor stay behind as the outline of one that is gone."""
    seen = remember((10, limbs_at(10)))
    assert (seen.owner[0, 0, 12, 6:14] == RIM).all() and is_right(seen.owner[0, 0, 14:17, 8:12]).all()
    layers = split_layers(seen, seen, limbs_at(20), HERE, INTRINSICS)
    rows, columns = layers.valid[0, 0].nonzero().unbind(1)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (13, 18, 17, 22)
    assert not layers.valid[0, 1, 12:20, 6:14].any()


def with_hole(column: int) -> Pictures:
    """A hand with a hole of 2 x 2 pixels, through which one sees the wall."""
    rgbd = picture(column)
    rgbd[..., 15:17, column - 1 : column + 1] = picture(None)[..., 15:17, column - 1 : column + 1]
    limbs = limbs_at(column)
    seen = seen_with(rgbd, limbs)
    assert not is_right(seen.owner[0, 0, 15:17, column - 1 : column + 1]).any()
    return seen


def test_cores_are_where_the_hand_is_and_as_far_away():
    limbs = limbs_at(16)
    (seen,) = silhouettes(limbs, HERE, INTRINSICS, SIZE)
    cores = torch.full((SIZE, SIZE), torch.inf)
    cores[seen.inner.rows, seen.inner.columns] = seen.cores[0]
    there = cores < FAR
    assert there[14:18, 14:18].all() and not there[:12].any() and not there[:, :12].any()
    assert ((cores[there] < NEAR) & (cores[there] > NEAR - 0.03)).all()
    owners = (
        owned_by(decode_depth(picture(16)[:, 3]), HERE, INTRINSICS, one)
        for one in (limbs, limbs._replace(silhouettes=(seen,)))
    )
    assert torch.equal(*owners)
    for rows in ((1,), (0, 1)):
        for absent in silhouettes(limbs_at(16, present=False, rows=rows), HERE, INTRINSICS, SIZE):
            assert absent.cores.shape == (1, 1, 1) and (absent.cores > 1e3).all()


def test_holes_in_a_hand_are_mended_in_the_colour_of_what_is_around_them():
    seen, wall = with_hole(10), remember((10, limbs_at(10)), (24, limbs_at(24)))
    anchor = rebuild(split_layers(wall, seen, limbs_at(16), HERE, INTRINSICS))
    torch.testing.assert_close(anchor.rgbd[0, :3, 13:19, 13:19], torch.full((3, 6, 6), HAND), atol=0.1, rtol=0)
    depth = decode_depth(anchor.rgbd[0, 3, 13:19, 13:19])
    assert ((depth < NEAR + 2e-3) & (depth > NEAR - 0.03)).all()


def test_what_is_before_a_hand_hides_what_was_mended():
    """The wall comes to where it stands before the hole."""
    seen, near = with_hole(16), picture(None)
    near[:, 3] = encode_depth(torch.tensor(NEAR - 0.2))
    still = Pictures(near[:, None], HERE[:, None], seen.valid, torch.zeros_like(seen.owner), seen.parts)
    anchor = rebuild(split_layers(still, seen, limbs_at(16), HERE, INTRINSICS))
    torch.testing.assert_close(anchor.rgbd[:, :3], picture(None)[:, :3], atol=2e-3, rtol=0)


def test_a_hand_that_no_picture_shows_nearby_is_not_made_up():
    nobody = seen_with(picture(None), limbs_at(16, present=False))
    layers = split_layers(nobody, nobody, limbs_at(16), HERE, INTRINSICS)
    assert not layers.valid[:, 0].any()
    thing = with_thing(thing_at(16, moved=0))  # neither does an object lend its colour
    seen = seen_with(picture(16), thing)
    gone = limbs_at(20)._replace(thing=thing_at(16, moved=1))
    layers = split_layers(seen, seen, gone, HERE, INTRINSICS)
    shown = layers.valid[0, 0]
    assert shown[13:19, 14:20].all() and not shown[:, 21:].any()


def test_a_picture_settles_where_nothing_changed():
    rng = torch.Generator().manual_seed(0)
    known = 0.5 * torch.rand(2, 4, SIZE, SIZE, generator=rng)
    anchor = Anchor(known, torch.ones(2, 1, SIZE, SIZE))
    anchor.mask[:, :, :, :4] = 0
    new = known + 0.05 * torch.rand(2, 4, SIZE, SIZE, generator=rng)
    new[:, :3, 10:16, 10:16] = -1.0  # something came
    settled = settle(new, anchor, torch.tensor([True, False]))
    assert torch.equal(settled[1], new[1])
    assert torch.equal(settled[0, :, :, :4], new[0, :, :, :4]) and torch.equal(
        settled[0, :, 10:16, 10:16], new[0, :, 10:16, 10:16]
    )
    assert torch.equal(settled[0, :, :8, 4:], known[0, :, :8, 4:]) and torch.equal(
        settled[0, :, 19:, 4:], known[0, :, 19:, 4:]
    )


def test_with_static_shapes_the_layers_are_the_same(monkeypatch):
    """As on a GPU, where nothing may depend on how many pixels show a hand: two rows, in one of which
    the camera has moved."""
    one, other = (remember((10, limbs_at(10)), (24, limbs_at(24))), remember((12, limbs_at(12)), (None, limbs_at(20))))
    seen = Pictures(*(torch.cat(part) for part in zip(one, other, strict=True)))
    now = [limbs_at(16), limbs_at(14)]
    parts, keypoints, present = (torch.cat([getattr(limbs, name) for limbs in now]) for name in Limbs._fields[:3])
    limbs, target = Limbs(parts, keypoints, present, (1,)), HERE.repeat(2, 1, 1)
    target[1, 0, 3] = 0.02
    given = (seen, seen, limbs, target, INTRINSICS.repeat(2, 1))
    free = split_layers(*given)
    for module in ("layers", "repose", "reproject", "reproject_fast"):
        monkeypatch.setattr(f"worldscape.conditioning.{module}.is_static", lambda like: True)
    static = split_layers(*given)
    assert free.valid[:, 0].any((1, 2)).all() and torch.equal(free.valid[:, 0], static.valid[:, 0])
    shown = free.valid[:, :1, None]
    torch.testing.assert_close(free.rgbd[:, :1] * shown, static.rgbd[:, :1] * shown, atol=1e-6, rtol=0)
    one, other = (reproject_fast(*layers, target, INTRINSICS.repeat(2, 1)) for layers in (free, static))
    assert torch.equal(one.mask, other.mask)
    torch.testing.assert_close(one.rgbd, other.rgbd, atol=2e-5, rtol=0)
