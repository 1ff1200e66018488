"""Hands judged: a dream that replays the simulator gets the best score there is, one that stands still does not."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.evaluate.panorama import PanoramaEnv, random_keys
from tests.evaluate.test_documented import undocumented
from worldscape.conditioning.camera import pose_from_state
from worldscape.engine_frames import EngineFrame, HandFrame, Start
from worldscape.evaluate import hands
from worldscape.evaluate.dream import DreamedHands
from worldscape.evaluate.episodes import EpisodeBatch, Judge
from worldscape.evaluate.hand_lessons import (
    SHIFT,
    disturb,
    hands_of,
    label_frames,
    load_or_train_reader,
    load_shipped_reader,
    reader_loss,
    train_hand_reader,
)
from worldscape.evaluate.hand_reader import HandReader, HandReaderConfig, find_peaks, read_hands
from worldscape.evaluate.hand_truth import hand_surface
from worldscape.evaluate.metrics import to_unit
from worldscape.hand_tasks import HAND_TASKS

NUM, STEPS = 2, 12


@pytest.fixture(scope="module")
def played() -> EpisodeBatch:
    return Judge("tabletop", "expert").episodes(NUM, STEPS)


@pytest.fixture(scope="module")
def reader() -> HandReader:
    torch.manual_seed(0)
    return HandReader(8).eval()


class ReplayEngine:
    """Dreams what the simulator showed, moment by moment; or, frozen, its first frame for ever."""

    num_slots, action_latency = NUM, 0

    def __init__(self, episodes: EpisodeBatch, is_frozen: bool = False) -> None:
        self.episodes, self.is_frozen, self.told = episodes, is_frozen, []

    def open(self, start: Start, seeds: torch.Tensor, rows: torch.Tensor | None = None) -> EngineFrame:
        assert start.hands is not None and start.hands.present[:, 0].tolist() == [[False, True]] * NUM
        self.number, self.places = 0, start.places
        return self._frame(0)

    def step(self, controls, active=None, *, hands=None, is_realised=False) -> EngineFrame:
        self.told.append(hands)
        self.number += 1
        return self._frame(0 if self.is_frozen else self.number)

    def _frame(self, number: int) -> EngineFrame:
        truth, rows, step = hands_of(self.episodes), torch.arange(NUM), max(number - 1, 0)
        values = torch.zeros(2, NUM, len(HAND_TASKS))
        values[0, rows, torch.from_numpy(truth.task)] = torch.from_numpy(truth.reward[:, step])
        values[1, rows, torch.from_numpy(truth.task)] = torch.from_numpy(self.episodes.success[:, step]).float()
        none = torch.zeros(NUM)
        state, command, present = (part[:, 0] for part in truth.recorded(1))
        points, things = torch.from_numpy(truth.keypoints[:, number]), torch.zeros(2, NUM, 3)
        place, moved = (torch.from_numpy(truth.object[:, number] - start) for start in (0.0, truth.object[:, 0]))
        reward, success = values
        target, touch = things
        shown = HandFrame(points, state, command, present, reward, success, place, target, touch, moved)
        made = EngineFrame(
            rgbd=torch.zeros(NUM, 4, *self.episodes.depth.shape[-2:]),
            pose=torch.from_numpy(self.episodes.pose[:, number]),
            camera=torch.zeros(NUM, 6),
            commanded=torch.zeros(NUM, 6),
            realised=torch.zeros(NUM, 6),
            coverage=none,
            latent=none[:, None, None],
            steps=none.long(),
            model_calls=1,
            hands=shown,
        )
        made.frame = torch.from_numpy(self.episodes.frames[:, number])
        made.depth = torch.from_numpy(self.episodes.depth[:, number])
        return made


def test_the_simulator_tells_of_hands(played):
    truth = hands_of(played)
    assert truth.actions.shape == (NUM, STEPS, 2, 13) and not truth.actions[:, :, 0].any()
    assert not played.controls.any() and not played.actions.any() and played.moves().mean() > 0.5
    cut = hands_of(played.cut(4, 3))
    assert np.array_equal(cut.state, truth.state[:, 4:8]) and np.array_equal(cut.reward, truth.reward[:, 4:7])
    assert len(hands_of(played.rows([1])).task) == 1 and len(played.segments(5)) == 2 * NUM


def test_a_replay_is_judged_perfect(played, reader):
    engine = ReplayEngine(played)
    found = hands.judge_hands(engine, played, reader, hands.HandsConfig(horizons=(4, STEPS))).metrics
    for horizon in (4, STEPS):
        assert found[f"hand_iou_h{horizon}"] == pytest.approx(1.0, nan_ok=True)
        assert found[f"keypoint_error_h{horizon}"] == found[f"keypoint_error_simulator_h{horizon}"]
        assert found[f"keypoint_error_commanded_h{horizon}"] < 1e-2
        assert found[f"object_place_error_h{horizon}"] < 1e-6
        for event in hands.EVENTS:
            same = [found[f"object_{event}_f1{ending}_h{horizon}"] for ending in ("", "_simulator")]
            assert same[0] == pytest.approx(same[1], nan_ok=True)
    assert found["reward_correlation"] == pytest.approx(1.0) and found["reward_error"] < 1e-6
    assert not undocumented(found)
    assert torch.equal(engine.told[3], torch.from_numpy(hands_of(played).actions[:, 3]))


@pytest.mark.parametrize("is_told", [True, False])
def test_starts_say_where_things_are_unless_asked_not_to(played, reader, is_told):
    engine = ReplayEngine(played)
    hands.judge_hands(engine, played, reader, hands.HandsConfig(horizons=(STEPS,), tells_places=is_told))
    truth = hands_of(played)
    if is_told:
        assert engine.places is not None
        assert torch.equal(engine.places[:, 0, 0], torch.from_numpy(truth.object[:, 0]))
        assert torch.equal(engine.places[:, 0, 1], torch.from_numpy(truth.target[:, 0]))
    else:
        assert engine.places is None


def test_a_frozen_dream_is_judged_worse(played, reader):
    found = hands.judge_hands(ReplayEngine(played, True), played, reader, hands.HandsConfig(horizons=(STEPS,))).metrics
    assert found[f"keypoint_error_commanded_h{STEPS}"] > 2.0 and found["reward_error"] > 1e-3


def test_what_the_dream_takes_the_object_to_do_is_held_against_the_simulator(played):
    """It moves in the first table only; the dream says so of the second as well, and is 3 cm off there."""
    place = np.repeat(hands_of(played).object[:, :1], STEPS + 1, axis=1)
    place[0, 5:, 0] += 0.05
    episodes = replace(played, hands=replace(hands_of(played), object=place))
    says = np.zeros((NUM, STEPS, 3), np.float32)
    says[:, 4:, 0] = 0.05
    seen = place[:, 1:].copy()
    seen[1, :, 2] += 0.06
    none = np.zeros((NUM, STEPS, 3), np.float32)
    dreamed = DreamedHands(object=seen, moved=says, keypoints=none, reward=none, success=none)
    found = hands.score_belief(dreamed, episodes, STEPS)
    assert found["object_told_recall"] == 1.0 and found["object_told_precision"] == 0.5
    assert found["object_place_error"] == pytest.approx(0.03)
    assert found["object_told_f1"] == pytest.approx(2 / 3)
    before = hands.score_belief(dreamed, episodes, 4)
    assert np.isnan(before["object_told_recall"]) and before["object_place_error"] == pytest.approx(0.03)


def test_motion_read_off_a_replay_is_that_of_the_simulator(played, reader):
    found = hands.judge_hand_motion(ReplayEngine(played), played, reader).metrics
    assert found["hand_motion_r2_dream"] == pytest.approx(found["hand_motion_r2_simulator"])
    assert found["hand_motion_error_dream"] == pytest.approx(found["hand_motion_error_simulator"])
    assert found["num_pairs"] == NUM * STEPS and not undocumented(found)


def test_surfaces_cover_the_hand_and_not_the_table(played):
    """Of the hand what can be seen: a keypoint more than 2 cm under the surface there is hidden by something."""
    rows, now = np.arange(NUM), np.full(NUM, 3)
    pose, points = played.pose[rows, now], hands_of(played).keypoints[rows, now, 1]
    labels = label_frames(played, rows, rows, now)
    surface = hand_surface(
        *(torch.from_numpy(part) for part in (played.depth[rows, now], pose, played.intrinsics, points))
    )
    depth = ((points - pose[:, None, :3, 3]) @ pose[:, :3, :3])[..., 2]
    for index, mask in enumerate(surface):
        column, row = labels.pixels[index].long().clamp(0, 63).unbind(-1)
        seen = labels.inside[index] & torch.from_numpy(depth[index] < played.depth[index, 3][row, column] + 0.02)
        assert int(seen.sum()) > 5 and bool(mask[row, column][seen].all())
        skin = labels.masks[index, 0]
        assert 0.02 < float(skin.float().mean()) < 0.3 and float((mask & skin).sum() / (mask | skin).sum()) > 0.7
    far = torch.full((1, 8, 8), 2.0)
    pose = pose_from_state(torch.zeros(1, 6))
    assert not hand_surface(far, pose, torch.tensor([[0.5, 0.5, 0.5, 0.5]]), torch.rand(1, 21, 3)).any()


def test_what_is_shifted_is_shifted_with_its_labels(played):
    rows, now = np.zeros(STEPS, int), np.arange(1, STEPS + 1)
    labels, frames = label_frames(played, rows, rows, now), to_unit(torch.from_numpy(played.frames[0]))
    shifts = set()
    for seed in range(8):
        first, second, moved = disturb(frames[rows], frames[now], labels, np.random.default_rng(seed))
        across, down = (int(step) for step in (moved.pixels - labels.pixels)[0, 0])
        shifts.add((across, down))
        torch.testing.assert_close(
            moved.places - labels.places, torch.tensor([across, down]).expand(STEPS, 2, 2).float()
        )
        inner = slice(SHIFT, 64 - SHIFT)
        rows_there, columns = slice(SHIFT + down, 64 - SHIFT + down), slice(SHIFT + across, 64 - SHIFT + across)
        assert torch.equal(moved.masks[:, :, rows_there, columns], labels.masks[:, :, inner, inner])
        # Under another light, blurred or not: still the same picture, and no other shift fits better.
        errors = {
            step: float(
                (first[:, :, rows_there, columns] - frames[rows][:, :, inner, slice(SHIFT + step, 64 - SHIFT + step)])
                .abs()
                .mean()
            )
            for step in range(-3, 4)
        }
        assert min(errors, key=lambda step: errors[step]) == 0 and second.shape == first.shape
    assert len(shifts) > 4


def test_peaks_are_where_heat_is():
    heat = torch.full((1, 1, 8, 8), -30.0)
    heat[0, 0, 2, 5] = 30.0
    torch.testing.assert_close(find_peaks(heat), torch.tensor([[[5.5 / 8, 2.5 / 8]]]))


def test_a_reader_learns_to_find_the_hand(played):
    config = HandReaderConfig(width=8, updates=60, batch_size=8, num_episodes=1, num_steps=1, lr=5e-3)
    rows, now = np.zeros(STEPS, int), np.arange(1, STEPS + 1)
    labels, frames = label_frames(played, rows, rows, now), to_unit(torch.from_numpy(played.frames[0]))
    torch.manual_seed(0)
    losses = []
    for model in (HandReader(8).eval(), train_hand_reader(played, config)):
        with torch.no_grad():
            losses.append(float(reader_loss(model(frames[rows], frames[now]), labels)))
    assert losses[1] < 0.6 * losses[0]


def test_the_shipped_judge_reads_the_simulator(played):
    """Held-out tables; it was taught on seeds below a million."""
    reader = load_shipped_reader()
    labels = [
        label_frames(played, np.arange(NUM), np.zeros(NUM, int), np.full(NUM, now)) for now in range(1, STEPS + 1)
    ]
    reading = read_hands(reader, played.frames[:, 0], played.frames[:, 1:])
    found = [hands.mean_iou(reading.hand[:, step], label.masks[:, 0]) for step, label in enumerate(labels)]
    assert np.mean(found) > 0.75
    off = [hands.mean_distance(reading.keypoints[:, step], label) for step, label in enumerate(labels)]
    assert np.mean(off) < 4.0


def test_a_judge_is_kept_shipped_or_trained(played, tmp_path):
    shipped = load_shipped_reader().state_dict()
    asked = []

    def walk():
        asked.append(1)
        return played

    def load(path, **settings):
        retrain = settings.pop("retrain", False)
        return load_or_train_reader(path, HandReaderConfig(**settings), walk, retrain=retrain).state_dict()

    path = tmp_path / "hand_reader.safetensors"
    assert torch.equal(load(None)["heat.weight"], shipped["heat.weight"]) and not asked
    own = load(path, updates=1, batch_size=2)
    assert asked == [1] and not torch.equal(own["heat.weight"], shipped["heat.weight"])
    assert torch.equal(load(path, updates=1, batch_size=2)["heat.weight"], own["heat.weight"]) and asked == [1]
    assert torch.equal(load(path)["heat.weight"], shipped["heat.weight"]) and asked == [1]
    # The shipped one is kept nowhere, or --retrain would find it there; what was trained is still kept.
    other = tmp_path / "other.safetensors"
    load(other)
    assert not other.exists()
    assert torch.equal(load(path, updates=1, batch_size=2)["heat.weight"], own["heat.weight"]) and asked == [1]


def test_events_and_agreement():
    moved = np.array([[0, 1, 1], [0, 0, 0], [1, 1, 0]], bool)
    lifted = np.array([[0, 1, 0], [0, 0, 0], [0, 0, 1]], bool)
    assert {name: flags.tolist() for name, flags in hands.find_events(moved, lifted).items()} == {
        "moved": [True, False, False],
        "lifted": [True, False, True],
        "dropped": [True, False, False],
    }
    found = hands.agreement(np.array([True, True, False]), np.array([True, False, False]))
    assert found == {"precision": 0.5, "recall": 1.0, "f1": pytest.approx(2 / 3)}
    assert math.isnan(hands.agreement(np.zeros(2, bool), np.zeros(2, bool))["f1"])
    assert hands.correlation(np.arange(3.0), -np.arange(3.0)) == pytest.approx(-1)
    assert hands.mean_iou(torch.tensor([[[True, True]]]), torch.tensor([[[True, False]]])) == 0.5


def test_bad_settings_are_named():
    with pytest.raises(ValueError, match="increasing"):
        hands.HandsConfig(horizons=(4, 2))
    with pytest.raises(ValueError, match="multiple of 8"):
        HandReaderConfig(width=12)
    rooms = Judge(policy=random_keys, make_env=lambda num_steps: PanoramaEnv()).episodes(1, 2)
    with pytest.raises(ValueError, match="have no hands"):
        train_hand_reader(rooms, HandReaderConfig(updates=1))
    with pytest.raises(ValueError, match="for tabletop choose one of"):
        Judge("tabletop", "goal")
