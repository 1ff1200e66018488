"""EgoDex: a file of that structure, written here with ARKit's axes, comes out as the hands that went in."""

from pathlib import Path

import cv2
import h5py
import numpy as np
import pytest
import torch

from worldscape import cli
from worldscape.conditioning.camera import apply_control, pose_from_state
from worldscape.conditioning.hand_model import HandState, hand_keypoints
from worldscape.conditioning.hands import rotation_from_vector, state_from_vector
from worldscape.data.egodex import JOINTS, EgoDexConfig, find_episodes, read_episode
from worldscape.data.episode import EpisodeReader
from worldscape.data.imports import camera_motion, import_egodex

FRAMES, HEIGHT, WIDTH = 12, 72, 128
FLIP = np.diag([1.0, -1.0, -1.0])
FOCAL = 70.0
EVERY = EgoDexConfig(stride=1)


def hands() -> HandState:
    """Both hands in front of a camera that looks ahead, each moving and closing: [T, 2], our axes."""
    time = torch.linspace(0, 1, FRAMES)[:, None]
    place = torch.tensor([[-0.12, 0.12, 0.4], [0.12, 0.1, 0.42]]) + time[..., None] * torch.tensor([0.05, -0.04, 0.06])
    turn = rotation_from_vector(torch.stack([-0.6 * time, 0.3 * time, 0.2 + 0 * time], -1).expand(FRAMES, 2, 3))
    return HandState(place, turn, (0.2 + 0.5 * time[..., None]).expand(FRAMES, 2, 7))


def cameras() -> torch.Tensor:
    state = torch.zeros(FRAMES, 6)
    state[:, 3] = torch.linspace(0, 0.1, FRAMES)
    state[:, 0] = torch.linspace(0, 0.03, FRAMES)
    return state


def keypoints() -> np.ndarray:
    return hand_keypoints(hands(), torch.tensor([True, False]).expand(FRAMES, 2)).numpy()


def write(folder: Path, name: str = "0", camera_axes: np.ndarray | None = None) -> Path:
    """An episode as EgoDex has it: world y up, z backward; the camera's own axes OpenCV's unless told otherwise."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.hdf5"
    pose = pose_from_state(cameras()).double().numpy()
    camera = np.tile(np.eye(4), (FRAMES, 1, 1))
    camera[:, :3, :3] = FLIP @ pose[:, :3, :3] @ (np.eye(3) if camera_axes is None else camera_axes)
    camera[:, :3, 3] = pose[:, :3, 3] @ FLIP
    with h5py.File(path, "w") as file:
        file["camera/intrinsic"] = np.array([[FOCAL, 0, WIDTH / 2], [0, FOCAL, HEIGHT / 2], [0, 0, 1]])
        file["transforms/camera"] = camera
        for hand, side in enumerate(("left", "right")):
            for joint, joint_name in enumerate(JOINTS):
                transform = np.tile(np.eye(4), (FRAMES, 1, 1))
                transform[:, :3, 3] = keypoints()[:, hand, joint] @ FLIP
                file[f"transforms/{side}{joint_name}"] = transform
                file[f"confidences/{side}{joint_name}"] = np.full(FRAMES, 0.9)
            for finger in ("Index", "Middle", "Ring", "Little"):
                file[f"transforms/{side}{finger}FingerMetacarpal"] = np.full((FRAMES, 4, 4), 7.0)
        file.attrs["llm_description"] = "Move both hands."
    video = cv2.VideoWriter(str(path.with_suffix(".mp4")), cv2.VideoWriter.fourcc(*"mp4v"), 30, (WIDTH, HEIGHT))
    for frame in range(FRAMES):
        picture = np.full((HEIGHT, WIDTH, 3), 20 * frame, np.uint8)
        picture[:, : (WIDTH - HEIGHT) // 2] = 255  # what a square from the middle does not show
        video.write(picture)
    video.release()
    return path


def rows(opened: h5py.File, name: str) -> h5py.Dataset:
    dataset = opened[name]
    assert isinstance(dataset, h5py.Dataset)
    return dataset


@pytest.fixture
def file(tmp_path) -> Path:
    return write(tmp_path / "part1" / "stack_cups")


def test_hands_come_out_in_our_axes_and_order(file):
    episode = read_episode(file, EVERY)
    assert episode.hand_present.all()
    np.testing.assert_allclose(episode.hand_keypoints, keypoints(), atol=1e-5)
    np.testing.assert_allclose(episode.pose, pose_from_state(cameras()), atol=1e-6)
    found = state_from_vector(torch.from_numpy(episode.hand_state))
    for before, after in zip(hands(), found, strict=True):
        np.testing.assert_allclose(after, before, atol=5e-3)


def test_cameras_with_arkits_own_axes_are_recognised(tmp_path):
    """Hands lie in front of the camera: where they do not, the camera's axes are ARKit's, which look along -z."""
    turned = read_episode(write(tmp_path, camera_axes=FLIP), EVERY)
    np.testing.assert_allclose(turned.pose, pose_from_state(cameras()), atol=1e-6)


def test_pixels_are_those_of_the_square_in_the_middle(file):
    episode = read_episode(file, EVERY)
    np.testing.assert_allclose(episode.intrinsics, [FOCAL / HEIGHT, FOCAL / HEIGHT, 0.5, 0.5], atol=1e-6)
    x, y, z = keypoints()[0, 1, 0]  # the first camera stands at the origin and looks ahead
    expected = 64 * np.array([FOCAL * x / z / HEIGHT + 0.5, FOCAL * y / z / HEIGHT + 0.5])
    np.testing.assert_allclose(episode.hand_pixels[0, 1, 0], expected, atol=1e-3)
    inside = ((episode.hand_pixels >= 0) & (episode.hand_pixels < 64)).all(-1)
    np.testing.assert_array_equal(episode.hand_visible, inside)
    assert inside.any() and episode.frames[0].max() < 30
    assert [round(float(frame.mean()) / 20) for frame in episode.frames] == list(range(FRAMES))


def test_low_confidence_hides_a_fingertip_and_an_untracked_palm_the_hand(file):
    with h5py.File(file, "a") as opened:
        rows(opened, "confidences/leftIndexFingerTip")[3] = 0.0032
        rows(opened, "confidences/rightHand")[5:] = 0.0032
    episode = read_episode(file, EVERY)
    assert episode.hand_present[:, 0].all() and not episode.hand_visible[3, 0, 8]
    assert episode.hand_present[:, 1].tolist() == [True] * 5 + [False] * (FRAMES - 5)
    gone = episode.hand_keypoints[5:, 1], episode.hand_state[5:, 1], episode.hand_pixels[5:, 1]
    assert not any(rows.any() for rows in gone) and not episode.hand_visible[5:, 1].any()


def test_joints_that_are_not_finite_count_as_absent(file):
    with h5py.File(file, "a") as opened:
        rows(opened, "transforms/leftThumbTip")[2] = np.nan
    episode = read_episode(file, EVERY)
    assert episode.hand_present[:, 0].tolist() == [True, True, False] + [True] * (FRAMES - 3)
    assert all(np.isfinite(part).all() for part in episode)


def test_without_confidences_all_joints_count_as_tracked(file):
    with h5py.File(file, "a") as opened:
        del opened["confidences"]
    assert read_episode(file, EVERY).hand_present.all()


def test_camera_motion_is_what_apply_control_undoes():
    states = torch.rand(9, 6, generator=torch.Generator().manual_seed(0)) - 0.5
    motion = camera_motion(states)
    np.testing.assert_allclose(apply_control(states[:-1], motion, 2.0), states[1:], atol=1e-5)


def test_the_command_writes_a_dataset_that_the_reader_reads(file, tmp_path, capsys):
    write(file.parent, "1")
    arguments = ["import", "egodex", "--source", str(tmp_path / "part1"), "--out", str(tmp_path / "d")]
    for _ in range(2):  # the second run finds everything done
        assert cli.main([*arguments, "--stride", "2"]) == 0
        assert "2 episodes" in capsys.readouterr().out
    reader = EpisodeReader(tmp_path / "d")
    assert len(reader) == 2
    reader.require("pose", "intrinsics", "camera", "controls", "realised", "hand_keypoints", "hand_state")
    episode = reader.episode(0)
    assert len(episode) == FRAMES // 2 - 1 and episode.actions.shape == (FRAMES // 2 - 1, 26)
    assert episode.hand_keypoints is not None and episode.hand_visible is not None
    np.testing.assert_allclose(episode.hand_keypoints, keypoints()[::2], atol=1e-5)
    assert episode.hand_visible.dtype == bool
    step = (hands().position[2, 0] - hands().position[0, 0]) / 0.03
    np.testing.assert_allclose(episode.actions[0, :3], step, atol=1e-3)
    assert episode.truncations.tolist() == [False] * (len(episode) - 1) + [True] and not episode.rewards.any()
    assert episode.depth is None and episode.object_pose is None


def break_joint(path: Path) -> None:
    with h5py.File(path, "a") as opened:
        del opened["transforms/rightLittleFingerTip"]


def break_video(path: Path) -> None:
    video = cv2.VideoWriter(str(path.with_suffix(".mp4")), cv2.VideoWriter.fourcc(*"mp4v"), 30, (WIDTH, HEIGHT))
    for _ in range(4):
        video.write(np.zeros((HEIGHT, WIDTH, 3), np.uint8))
    video.release()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (break_joint, r"lacks 1 of EgoDex's datasets \(transforms/rightLittleFingerTip\); leave this file out"),
        (break_video, "ends after 4 frames, but its tracks go on"),
        (lambda path: path.write_bytes(b"no hdf5"), "is damaged"),
    ],
)
def test_damaged_files_are_named(file, damage, message):
    damage(file)
    with pytest.raises(ValueError, match=message):
        read_episode(file, EVERY)


def test_folders_without_episodes_or_videos_are_refused(file, tmp_path):
    with pytest.raises(ValueError, match="holds no EgoDex episode"):
        find_episodes(tmp_path / "nowhere")
    file.with_suffix(".mp4").unlink()
    with pytest.raises(ValueError, match="has no video beside it"):
        find_episodes(tmp_path)


def test_an_episode_of_one_frame_is_refused(file):
    with pytest.raises(ValueError, match="has 1 frames at stride 50; an episode needs two or more"):
        read_episode(file, EgoDexConfig(stride=50))


@pytest.mark.parametrize("settings", [{"size": 4}, {"stride": 0}, {"max_frames": -1}, {"min_confidence": 2.0}])
def test_impossible_settings_are_refused(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        EgoDexConfig(**settings)


def test_a_number_of_episodes_below_zero_is_refused(tmp_path):
    with pytest.raises(ValueError, match="episodes is -1; give how many to import, or 0 for all"):
        import_egodex(tmp_path, tmp_path / "d", EgoDexConfig(), -1)
    assert not (tmp_path / "d").exists()
