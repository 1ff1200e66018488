"""Pose video: equal to a naive drawing, hands where the camera sees them, nothing where there is none."""

import numpy as np
import pytest
import torch

from worldscape.conditioning import pose_video
from worldscape.conditioning.camera import pose_from_state
from worldscape.conditioning.hand_model import BONES, HandState, hand_keypoints
from worldscape.conditioning.hands import rotation_from_vector
from worldscape.conditioning.pose_video import HIDDEN, RADIUS, SMALLEST_RADIUS, bone_colours, draw_pose_video

SIZE = (20, 24)
LEVEL = torch.tensor([[0.0, 0.0, 0.0, 0.0, 0.0, 0.0]])
INTRINSICS = torch.tensor([[1.0, 1.2, 0.5, 0.5]])
BOTH = torch.tensor([True, False])


def scene(batch: int, seed: int = 0) -> dict:
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.rand(*shape, generator=generator)  # noqa: E731
    position = torch.tensor([-0.15, -0.1, 0.25]) + torch.tensor([0.3, 0.2, 0.3]) * draw(batch, 2, 3)
    states = HandState(position, rotation_from_vector(2 * draw(batch, 2, 3) - 1), draw(batch, 2, 7))
    return {
        "keypoints": hand_keypoints(states, BOTH.expand(batch, 2)),
        "visible": draw(batch, 2, 21) > 0.3,
        "present": torch.ones(batch, 2, dtype=torch.bool),
        "pose": pose_from_state(0.2 * draw(batch, 6) - 0.1),
        "intrinsics": INTRINSICS.expand(batch, 4),
    }


def draw_naively(slot: int, keypoints, visible, present, pose, intrinsics) -> np.ndarray:
    """One picture, one pixel at a time: bones over this pixel from near to far, each over what is left."""
    height, width = SIZE
    fx, fy, cx, cy = intrinsics[slot].tolist()
    eyes, turn = pose[slot, :3, 3].numpy(), pose[slot, :3, :3].numpy()
    picture, colours = np.zeros((3, height, width)), bone_colours(2).numpy()
    for row in range(height):
        for column in range(width):
            layers = []
            for hand in range(2):
                if not present[slot, hand]:
                    continue
                points = (keypoints[slot, hand].numpy() - eyes) @ turn
                for bone, (a, b) in enumerate(BONES):
                    ends = []
                    for point, seen in ((points[a], visible[slot, hand, a]), (points[b], visible[slot, hand, b])):
                        place = width * (fx * point[0] / point[2] + cx), height * (fy * point[1] / point[2] + cy)
                        radius = max(RADIUS * fx * width / point[2], SMALLEST_RADIUS)
                        ends.append((np.array(place), point[2], radius, 1.0 if seen else HIDDEN))
                    (start, near, thick, opaque), (end, far, thin, faint) = ends
                    pixel, way = np.array([column + 0.5, row + 0.5]), end - start
                    share = float(np.clip((pixel - start) @ way / max(way @ way, 1e-6), 0, 1))
                    distance = np.linalg.norm(pixel - start - share * way)
                    cover = np.clip(thick + share * (thin - thick) + 0.5 - distance, 0, 1)
                    alpha = cover * (opaque + share * (faint - opaque))
                    layers.append((near + share * (far - near), alpha, colours[20 * hand + bone]))
            left = 1.0
            for _, alpha, colour in sorted(layers, key=lambda layer: layer[0]):
                picture[:, row, column] += left * alpha * colour
                left *= 1 - alpha
    return picture


def test_it_equals_a_naive_drawing():
    world = scene(2)
    world["present"][1, 0] = False
    image = draw_pose_video(**world, size=SIZE).image
    assert image.amax() > 0.8
    for slot in range(2):
        np.testing.assert_allclose(image[slot], draw_naively(slot, **world), atol=2e-4)


@pytest.mark.parametrize("aside", [0.0, 0.3, -0.3, 5.0])
def test_nothing_is_lost_outside_of_the_window_that_is_drawn(aside, monkeypatch):
    """Hands inside of the picture, on either edge of it, and out of it."""
    world = scene(2, seed=3)
    world["keypoints"][..., 0] += aside
    fast = draw_pose_video(**world, size=SIZE).picture
    monkeypatch.setattr(pose_video, "_window", lambda capsules, size: pose_video.Window(0, size[0], 0, size[1]))
    whole = draw_pose_video(**world, size=SIZE).picture
    assert whole.any() == (abs(aside) < 1)
    torch.testing.assert_close(fast, whole, atol=1e-6, rtol=0)


def test_a_slot_does_not_depend_on_its_neighbours():
    world = scene(3)
    together = draw_pose_video(**world, size=SIZE).image
    for slot in range(3):
        alone = draw_pose_video(**{name: value[slot : slot + 1] for name, value in world.items()}, size=SIZE).image
        np.testing.assert_allclose(together[slot], alone[0], atol=1e-6)


def test_no_hand_is_a_black_picture_and_a_flag_whatever_the_rows_hold():
    world = scene(2)
    world["present"][0] = False
    world["keypoints"][0] = torch.nan
    video = draw_pose_video(**world, size=SIZE)
    assert not video.image[0].any() and video.image[1].any()
    assert video.present.tolist() == [[False, False], [True, True]]


def test_the_nearer_finger_hides_the_farther_one():
    """A middle finger held between the eyes and an index finger: its green wins."""
    points = torch.zeros(1, 1, 21, 3)
    points[..., 2] = 5.0
    points[..., 0] = 10.0
    points[0, 0, 5:9] = torch.tensor([[-0.1, 0.0, 0.6], [-0.03, 0.0, 0.6], [0.03, 0.0, 0.6], [0.1, 0.0, 0.6]])
    points[0, 0, 9:13] = torch.tensor([[0.0, -0.1, 0.4], [0.0, -0.03, 0.4], [0.0, 0.03, 0.4], [0.0, 0.1, 0.4]])
    flags = {"visible": torch.ones(1, 1, 21), "present": torch.ones(1, 1, dtype=torch.bool)}
    camera = {"pose": pose_from_state(LEVEL), "intrinsics": INTRINSICS}
    index, middle = bone_colours(1)[5], bone_colours(1)[9]
    for swap in (1.0, 2.0):  # twice as far away, the middle finger lies behind
        points[0, 0, 9:13, 2] = 0.4 * swap
        image = draw_pose_video(points, **flags, **camera, size=(65, 65)).image[0]
        np.testing.assert_allclose(image[:, 32, 32], middle if swap == 1.0 else index, atol=1e-4)


def test_hidden_joints_are_drawn_fainter_and_those_behind_the_eyes_not_at_all():
    world = scene(1)
    seen = draw_pose_video(**(world | {"visible": torch.ones(1, 2, 21)}), size=SIZE).image
    hidden = draw_pose_video(**(world | {"visible": torch.zeros(1, 2, 21)}), size=SIZE).image
    assert 0.2 * seen.sum() < hidden.sum() < 0.8 * seen.sum()
    world["keypoints"][..., 2] -= 2.0
    assert not draw_pose_video(**world, size=SIZE).image.any()


def test_it_compiles_without_a_break():
    """Static shapes, no value read back: what a captured step needs."""
    world = scene(2)
    explained = torch._dynamo.explain(lambda: draw_pose_video(**world, size=SIZE).image)()
    assert explained.graph_break_count == 0


def test_gradients_reach_the_keypoints():
    world = scene(1)
    world["keypoints"].requires_grad_()
    draw_pose_video(**world, size=SIZE).image.sum().backward()
    assert world["keypoints"].grad.abs().sum() > 0 and torch.isfinite(world["keypoints"].grad).all()


@pytest.mark.parametrize(
    "change", [{"keypoints": torch.zeros(1, 3, 21, 3)}, {"visible": torch.ones(1, 2, 20)}, {"present": torch.ones(2)}]
)
def test_other_shapes_are_refused(change):
    with pytest.raises(ValueError, match="give .B, H, 21, 3., .B, H, 21. and .B, H."):
        draw_pose_video(**(scene(1) | change), size=SIZE)
