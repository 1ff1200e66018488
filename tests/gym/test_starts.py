"""Where worlds begin: files, datasets, pictures, videos, drawn rooms."""

from dataclasses import replace
from typing import Any

import cv2
import gymnasium as gym
import imageio.v3 as iio
import numpy as np
import pytest
import torch

from tests.data.tiny_env import SIZE
from worldscape.data.episode import EpisodeReader
from worldscape.data.record import RecordConfig, record
from worldscape.data.starts import Starts, save_starts
from worldscape.hand_tasks import HAND_TASKS
from ws_gym import starts as starts_module
from ws_gym.drawn_rooms import draw_room
from ws_gym.pictures import read_picture
from ws_gym.starts import CollectedStarts, DrawnStarts, choose_starts, open_starts, to_start

SQUARE = (64, 64)
RNG = np.random.default_rng(0)


def draw(source, num: int = 1, number: int | None = None) -> Any:
    return source.draw([np.random.default_rng(row) for row in range(num)], number)


def override_starts(options: dict[str, Any], size: tuple[int, int]) -> Any:
    """What reset options make of starts that are there anyhow."""
    return choose_starts(options, DrawnStarts(size), size)


def make_starts(num: int = 5, num_frames: int = 2, size: tuple[int, int] = SQUARE) -> Any:
    return Starts(
        frames=RNG.integers(0, 256, (num, num_frames, *size, 3), dtype=np.uint8),
        seeds=np.arange(num),
        depth=RNG.uniform(1, 9, (num, num_frames, *size)).astype(np.float16),
        pose=np.tile(np.eye(4, dtype=np.float32), (num, num_frames, 1, 1)),
        intrinsics=np.tile(np.array([0.6, 0.6, 0.5, 0.5], np.float32), (num, 1)),
    )


@pytest.fixture
def shipped(tmp_path, monkeypatch):
    """A folder in the place of the package's weights, with starts for training only."""
    monkeypatch.setattr(starts_module, "SHIPPED", tmp_path)
    starts = make_starts()
    save_starts(starts, tmp_path / "starts-train.safetensors")
    return starts


def test_shipped_starts_come_as_they_are(shipped):
    start = draw(open_starts("train", SQUARE, "nano"), number=3)
    np.testing.assert_array_equal(start.frames[0], shipped.frames[3])
    np.testing.assert_array_equal(start.depth[0], shipped.depth[3].astype(np.float32))
    np.testing.assert_array_equal(start.intrinsics[0], shipped.intrinsics[3])
    assert start.frames.dtype == torch.uint8 and start.depth.dtype == start.pose.dtype == torch.float32


def test_splits_are_apart(shipped):
    with pytest.raises(ValueError, match="starts-heldout.safetensors does not exist"):
        open_starts("heldout", SQUARE, "nano")


def test_random_weights_need_no_files(shipped):
    frame = draw(open_starts("heldout", SQUARE, "debug"), number=7).frames[0, 0]
    np.testing.assert_array_equal(frame, draw_room(7, SQUARE).frame)


def test_a_slot_draws_by_its_own_generator(shipped):
    source = open_starts("train", SQUARE, "nano")
    together = draw(source, num=4).frames
    for row in range(4):
        alone = source.draw([np.random.default_rng(row)]).frames
        np.testing.assert_array_equal(together[row], alone[0])


def test_choosing_a_start_leaves_the_generator_as_drawing_does(shipped):
    source, rngs = open_starts("train", SQUARE, "nano"), [np.random.default_rng(0) for _ in range(2)]
    source.draw(rngs[:1])
    source.draw(rngs[1:], number=2)
    assert rngs[0].bit_generator.state == rngs[1].bit_generator.state


class TestTasks:
    """Recordings of several tasks: a world opens with one of its own."""

    KINDS = np.array([[0, 0], [1, 1], [2, 2], [1, 1], [0, 0]])

    @staticmethod
    def open(where: Any) -> Any:
        return open_starts(where, SQUARE, "nano")

    def numbers_drawn(self, source: Any, task_id: int | None) -> set[int]:
        return {source._draw_number(np.random.default_rng(seed), task_id) for seed in range(100)}

    def test_a_file_gives_those_of_the_task(self, tmp_path):
        path = tmp_path / "mine.safetensors"
        save_starts(replace(make_starts(), task_id=self.KINDS), path)
        source = self.open(path)
        assert self.numbers_drawn(source, 1) == {1, 3}
        assert self.numbers_drawn(source, None) == {0, 1, 2, 3, 4}
        opened = source.draw([np.random.default_rng(0)], task_id=2).frames[0]
        np.testing.assert_array_equal(opened, source.starts.frames[2])
        with pytest.raises(ValueError, match="none of the 5 starts was recorded of task_id 3"):
            source.draw([np.random.default_rng(0)], task_id=3)

    def test_a_number_counts_those_of_the_task(self, tmp_path):
        """It named a start of the whole file, which showed the table of another task."""
        path = tmp_path / "mine.safetensors"
        save_starts(replace(make_starts(), task_id=self.KINDS), path)
        source = self.open(path)
        assert [len(source.suiting(task_id)) for task_id in (None, 0, 1, 2, 3)] == [5, 2, 2, 1, 0]
        opened = source.draw([np.random.default_rng(0)], 1, task_id=1).frames[0]
        np.testing.assert_array_equal(opened, source.starts.frames[3])
        with pytest.raises(ValueError, match="start 2 does not exist: there are 2 of this task; choose from 0 to 1"):
            source.draw([np.random.default_rng(0)], 2, task_id=1)
        with pytest.raises(ValueError, match="none of the 5 starts was recorded of task_id 3"):
            source.draw([np.random.default_rng(0)], 0, task_id=3)

    def test_starts_of_no_known_task_serve_all(self, shipped):
        assert self.numbers_drawn(self.open("train"), 1) == {0, 1, 2, 3, 4}

    def test_a_dataset_gives_frames_of_the_task(self, dataset, monkeypatch):
        source = self.open(dataset)
        everything = self.numbers_drawn(source, None)
        assert self.numbers_drawn(source, 0) == everything  # these recordings name no task
        assert list(source.suiting(0)) == list(range(10))
        cut = source._cut
        monkeypatch.setattr(source, "_cut", lambda number: cut(number) | {"task_id": np.array([number % 2])})
        assert self.numbers_drawn(source, 1) == {1, 3, 5, 7, 9}
        with pytest.raises(ValueError, match="100 episodes of .* are of other tasks than task_id 2"):
            source.draw([np.random.default_rng(0)], task_id=2)

    def test_numbers_within_a_task_of_a_dataset(self, dataset, monkeypatch):
        source = self.open(dataset)
        kinds = iter([np.full(5, 1), np.full(5, 0)])
        told = [replace(episode, task_id=next(kinds)) for episode in source.reader]
        monkeypatch.setattr(source, "reader", told)
        assert list(source.suiting(0)) == [5, 6, 7, 8, 9] and source._choose(2, 0) == 7

    @pytest.mark.parametrize("task", ["reach", "push", "pick_place"])
    def test_shipped_tables_open_with_their_task(self, task):
        env: Any = gym.make_vec(
            "ws_gym:WorldScape-Hand-v0", num_envs=1, weights="debug", task=task, starts="hands-train"
        )
        core = env.unwrapped._core
        assert core.task.recorded_as == HAND_TASKS.index(task)
        shown = [core.starts._draw_number(np.random.default_rng(seed), core.task.recorded_as) for seed in range(20)]
        assert len(set(shown)) > 10
        assert set(core.starts.starts.task_id[shown, -1]) == {core.task.recorded_as}
        assert env.unwrapped.num_starts == (core.starts.starts.task_id[:, -1] == core.task.recorded_as).sum()
        last = env.unwrapped.num_starts - 1
        frames = env.reset(options={"start": last})[0]
        picked = core.starts.pick(core.starts.suiting(core.task.recorded_as)[last:]).frames[:, -1]
        assert np.abs(frames.astype(int) - picked).mean() < 2
        env.close()


@pytest.mark.parametrize("number", [-1, 5])
def test_starts_that_do_not_exist_are_refused(shipped, number):
    with pytest.raises(ValueError, match=f"start {number} does not exist: there are 5; choose from 0 to 4"):
        draw(open_starts("train", SQUARE, "nano"), number=number)


def test_a_file_of_ones_own(tmp_path):
    starts = make_starts(2)
    save_starts(starts, tmp_path / "mine.safetensors")
    source = open_starts(tmp_path / "mine.safetensors", SQUARE, "nano")
    np.testing.assert_array_equal(draw(source, number=1).frames[0], starts.frames[1])


def test_a_rewritten_file_is_read_again(tmp_path):
    path = tmp_path / "mine.safetensors"
    for num in (2, 3):
        save_starts(make_starts(num), path)
        assert len(open_starts(path, SQUARE, "nano")) == num


def test_other_picture_sizes_are_resized_and_depth_keeps_its_values():
    starts = make_starts(1, 1, (32, 32))
    start: Any = to_start(starts, SQUARE)
    assert start.frames.shape == (1, 1, 64, 64, 3)
    np.testing.assert_array_equal(start.depth[0, 0, ::2, 1::2], starts.depth[0, 0].astype(np.float32))
    np.testing.assert_array_equal(start.intrinsics, starts.intrinsics)


def test_without_poses_only_the_last_frame_is_used():
    starts = make_starts(2, 3)
    start: Any = to_start(replace(starts, pose=None), SQUARE)
    np.testing.assert_array_equal(start.frames, starts.frames[:, -1:])
    np.testing.assert_array_equal(start.depth, starts.depth[:, -1:].astype(np.float32))
    assert start.pose is None


def test_a_recording_says_where_object_and_target_are(tmp_path):
    starts = make_starts(2, 1)
    assert draw(CollectedStarts(starts, SQUARE)).places is None
    pose = np.tile(np.eye(4, dtype=np.float32), (2, 1, 1, 1))
    pose[..., :3, 3] = [0.1, -0.02, 0.3]
    target = np.full((2, 1, 3), 0.25, np.float32)
    save_starts(replace(starts, object_pose=pose, target=target), tmp_path / "both.safetensors")
    both = draw(open_starts(tmp_path / "both.safetensors", SQUARE, "nano"), number=1).places
    torch.testing.assert_close(both, torch.tensor([[[[0.1, -0.02, 0.3], [0.25, 0.25, 0.25]]]]))
    one = draw(CollectedStarts(replace(starts, target=target), SQUARE), number=0).places
    assert one[:, :, 0].isnan().all() and (one[:, :, 1] == 0.25).all()


def test_a_wide_picture_is_cropped_and_its_rays_stay():
    """The ray through each remaining pixel is the same before and after cropping 96 x 64 to its middle."""
    start: Any = to_start(make_starts(1, 1, (64, 96)), SQUARE)
    fx, fy, cx, cy = start.intrinsics[0].tolist()
    before, after = np.arange(16, 80) + 0.5, np.arange(64) + 0.5
    np.testing.assert_allclose((after / 64 - cx) / fx, (before / 96 - 0.5) / 0.6, rtol=1e-5)
    assert (fy, cy) == pytest.approx((0.6, 0.5))


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    path = tmp_path_factory.mktemp("recorded") / "tiny"
    record(RecordConfig(env="tests.data.tiny_env:Tiny-v0", out=path, episodes=2, policy="random", steps_per_episode=4))
    return path


def test_every_frame_of_a_dataset_is_a_start(dataset):
    source = open_starts(dataset, (SIZE, SIZE), "nano")
    assert len(source) == 10
    for number in range(10):
        episode = EpisodeReader(dataset).episode(number // 5)
        start = draw(source, number=number)
        np.testing.assert_array_equal(start.frames[0, 0], episode.frames[number % 5])
        assert episode.depth is not None and episode.pose is not None
        np.testing.assert_array_equal(start.depth[0, 0], episode.depth[number % 5].astype(np.float32))
        np.testing.assert_array_equal(start.pose[0, 0], episode.pose[number % 5])


def test_frames_of_a_dataset_are_resized_to_the_world(dataset):
    assert draw(open_starts(dataset, SQUARE, "nano"), 3).frames.shape == (3, 1, 64, 64, 3)


class TestPictures:
    picture = np.stack(np.broadcast_arrays(np.arange(120)[:, None], np.arange(100)[None], 7), -1).astype(np.uint8)

    def test_a_picture_opens_all_slots_without_depth(self):
        source = override_starts({"image": self.picture}, SQUARE)
        start = draw(source, 2)
        assert start.depth is None and start.intrinsics is None
        np.testing.assert_array_equal(start.frames[0], start.frames[1])
        # The centred 100 x 100 of 120 x 100: rows 10 to 110.
        expected = cv2.resize(self.picture[10:110], SQUARE, interpolation=cv2.INTER_AREA)
        np.testing.assert_array_equal(start.frames[0, 0], expected)

    def test_paths_are_read_as_rgb(self, tmp_path):
        iio.imwrite(tmp_path / "photo.png", self.picture)
        expected = draw(override_starts({"image": self.picture}, SQUARE)).frames
        for source in (
            override_starts({"image": tmp_path / "photo.png"}, SQUARE),
            open_starts(str(tmp_path / "photo.png"), SQUARE, "nano"),
        ):
            np.testing.assert_array_equal(draw(source).frames, expected)

    def test_a_video_opens_where_it_ends(self):
        video = RNG.integers(0, 256, (3, 64, 64, 3), dtype=np.uint8)
        frames = draw(override_starts({"video": video}, SQUARE)).frames
        np.testing.assert_array_equal(frames[0], video[-1:])

    def test_video_files_are_read(self, tmp_path):
        writer = cv2.VideoWriter(str(tmp_path / "walk.mp4"), cv2.VideoWriter.fourcc(*"mp4v"), 10, SQUARE)
        for shade in range(20, 220, 20):
            writer.write(np.full((*SQUARE, 3), (shade, 0, 0), np.uint8))
        writer.release()
        frame = draw(open_starts(tmp_path / "walk.mp4", SQUARE, "nano")).frames[0, 0].float()
        np.testing.assert_allclose(frame.mean((0, 1)), [0, 0, 200], atol=5)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"image": np.zeros((64, 64, 3))}, "image is ndarray of float64; give uint8 RGB"),
            ({"image": "nowhere.png"}, "image nowhere.png does not exist"),
            ({"image": 5}, "image is int of int64"),
            ({"image": np.zeros((64, 64), np.uint8)}, r"image has shape \(64, 64\)"),
            ({"image": np.zeros((64, 64, 4), np.uint8)}, r"image has shape \(64, 64, 4\)"),
            ({"image": np.zeros((8, 64, 3), np.uint8)}, "image is 64x8 pixels; 16x16 is the least"),
            ({"image": np.zeros((0, 0, 3), np.uint8)}, "image has shape"),
            ({"image": [[1, 2], [3]]}, "image is list that is no array .*; give uint8 RGB"),
            ({"image": torch.zeros(64, 64, 3, requires_grad=True)}, "image is Tensor of float32; give uint8 RGB"),
            ({"image": torch.zeros(64, 64, 3, dtype=torch.bfloat16)}, "image is Tensor that is no array"),
            ({"video": [[[1]], [2]]}, "video is list that is no array"),
            ({"video": np.zeros((0, 64, 64, 3), np.uint8)}, r"video has shape \(0, 64"),
            ({"video": np.zeros((64, 64, 3), np.uint8)}, r"video has shape \(64, 64, 3\)"),
            ({"video": "nowhere.mp4"}, "video nowhere.mp4 does not exist"),
            ({"image": "a.png", "video": "b.mp4"}, "both 'image' and 'video'"),
        ],
    )
    def test_malformed_pictures_are_refused(self, options, message):
        with pytest.raises(ValueError, match=message):
            override_starts(options, SQUARE)

    @pytest.mark.parametrize("name", ["photo.tiff", "photo.TIF", "photo"])
    def test_any_file_that_shows_a_picture_is_one(self, tmp_path, name):
        """`starts="photo.tiff"` was called a dataset that is none, while the option image opened it."""
        (tmp_path / name).write_bytes(cv2.imencode(".tiff", self.picture[..., ::-1])[1].tobytes())
        expected = draw(override_starts({"image": self.picture}, SQUARE)).frames
        np.testing.assert_array_equal(draw(open_starts(tmp_path / name, SQUARE, "nano")).frames, expected)

    def test_a_picture_that_is_cut_short_is_refused(self, tmp_path):
        """OpenCV fills what is missing of a JPEG with grey; such a world was a flat wall."""
        data = cv2.imencode(".jpg", RNG.integers(0, 256, (90, 90, 3), dtype=np.uint8))[1].tobytes()
        path = tmp_path / "photo.jpg"
        path.write_bytes(data + b"what a phone appends")
        assert draw(override_starts({"image": path}, SQUARE)).frames.shape == (1, 1, 64, 64, 3)
        path.write_bytes(data[: len(data) // 2])
        with pytest.raises(ValueError, match="photo.jpg is cut short"):
            override_starts({"image": path}, SQUARE)

    @pytest.mark.parametrize("kind", [np.uint8, np.uint16])
    def test_what_is_transparent_shows_white(self, tmp_path, kind):
        """Instead of whatever colour lies there unseen."""
        alpha = np.zeros(self.picture.shape[:2], np.uint8)
        alpha[:60], alpha[60:90] = 255, 51
        full = np.iinfo(kind).max // 255
        layers = np.dstack([self.picture[..., ::-1], alpha]).astype(kind) * full
        cv2.imwrite(str(tmp_path / "photo.png"), layers)
        shown = read_picture(tmp_path / "photo.png").astype(int)
        np.testing.assert_array_equal(shown[:60], self.picture[:60])
        np.testing.assert_allclose(shown[60:90], 0.2 * self.picture[60:90] + 0.8 * 255, atol=0.5)
        assert (shown[90:] == 255).all()

    def test_a_picture_may_say_how_wide_its_view_is(self):
        """Of 120 x 200 pixels in 90 degrees, f is 100 pixels; the middle square has 120 of them."""
        wide = np.broadcast_to(np.arange(200, dtype=np.uint8)[None, :, None], (120, 200, 3))
        for options in ({"image": wide}, {"video": wide[None]}):
            start = draw(override_starts({**options, "fov": 90}, SQUARE), 2)
            np.testing.assert_allclose(start.intrinsics, [[100 / 120, 100 / 120, 0.5, 0.5]] * 2, rtol=1e-6)
            np.testing.assert_array_equal(start.frames, draw(override_starts(options, SQUARE), 2).frames)

    def test_a_picture_that_starts_names_may_say_it_too(self, tmp_path):
        iio.imwrite(tmp_path / "photo.png", self.picture)
        own = open_starts(tmp_path / "photo.png", SQUARE, "nano")
        start = draw(choose_starts({"fov": 90.0}, own, SQUARE))
        np.testing.assert_allclose(start.intrinsics, [[0.5, 0.5, 0.5, 0.5]], rtol=1e-6)
        assert draw(choose_starts({}, own, SQUARE)).intrinsics is None

    @pytest.mark.parametrize("fov", [9.9, 151, "wide", True, float("nan")])
    def test_views_that_no_lens_has_are_refused(self, fov):
        with pytest.raises(ValueError, match="is no field of view; give .* 10 to 150 degrees"):
            override_starts({"image": self.picture, "fov": fov}, SQUARE)

    def test_recorded_starts_know_their_view(self):
        with pytest.raises(ValueError, match="fov=60 is for a picture or video; these starts know their own"):
            override_starts({"fov": 60}, SQUARE)

    @pytest.mark.parametrize("name", ["photo.png", "walk.mp4", "mine.safetensors"])
    def test_files_that_are_something_else_are_refused(self, tmp_path, name):
        (tmp_path / name).write_text("not what the name says")
        with pytest.raises(ValueError, match=name):
            open_starts(tmp_path / name, SQUARE, "nano")


@pytest.mark.parametrize(("starts", "message"), [("tset", "the dataset tset does not exist"), (3, "starts=3 names no")])
def test_unknown_starts_are_refused(starts, message):
    with pytest.raises(ValueError, match=message):
        open_starts(starts, SQUARE, "nano")


def test_drawn_rooms_have_true_depth():
    """Where the ray through a pixel meets the floor 1.2 m below the eye, depth is 1.2 m over the ray's slope."""
    room = draw_room(3, SQUARE)
    slope = ((63 + 0.5) / 64 - 0.5) / room.intrinsics[1]
    assert room.depth[63, 32] == pytest.approx(1.2 / slope, rel=1e-5)
    assert room.frame.std() > 10
    np.testing.assert_array_equal(room.frame, draw_room(3, SQUARE).frame)
    assert np.abs(room.frame.astype(int) - draw_room(4, SQUARE).frame).mean() > 10


def test_a_hand_that_leaves_takes_its_fingers_along():
    """Start 22 of those to reach shows fingers flat on a bluish table that were told to curl: four stayed there."""
    env: Any = gym.make("ws_gym:WorldScape-Hand-v0", starts="hands-heldout", task="reach")
    frame, _ = env.reset(seed=7, options={"start": 22})
    for _ in range(8):
        left = env.step(np.array([1, -1, *[0] * 11], np.float32))[0]
    env.close()
    skin = [(shown[36:, ..., 0].astype(int) - shown[36:, ..., 2] > 20).sum() for shown in (frame, left)]
    assert skin[0] > 100 and skin[1] == 0
