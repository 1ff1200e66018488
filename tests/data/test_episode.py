"""Reading datasets: those made by others, and what is said about those that cannot be read."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from gymnasium import spaces
from minari.data_collector import EpisodeBuffer
from minari.dataset.minari_storage import MinariStorage

from tests.data.tiny_env import SIZE
from worldscape.data.episode import EpisodeReader
from worldscape.data.record import RecordConfig, record

STEPS = 4
IMAGE = spaces.Box(0, 255, (SIZE, SIZE, 3), np.uint8)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("recorded") / "tiny"
    record(
        RecordConfig(env="tests.data.tiny_env:Tiny-v0", out=path, episodes=2, policy="random", steps_per_episode=STEPS)
    )
    return path


@pytest.fixture
def dataset(recorded, tmp_path) -> Path:
    return Path(shutil.copytree(recorded, tmp_path / "copy"))


def make_foreign(path: Path, data_format: str, observation_space: spaces.Space = IMAGE, **infos) -> np.ndarray:
    """A dataset as Minari itself writes it -> its observations."""
    storage = MinariStorage.new(path, observation_space, spaces.Box(-1, 1, (2,)), data_format=data_format)
    storage.update_metadata({"dataset_id": "others/camera-v0", "minari_version": "0.5.4"})
    rng = np.random.default_rng(0)
    observations = rng.integers(0, 256, (STEPS + 1, *(observation_space.shape or ())))
    observations = observations.astype(observation_space.dtype)
    flags = [False] * STEPS
    storage.update_episodes(
        [
            EpisodeBuffer(
                observations=list(observations),
                actions=list(rng.uniform(-1, 1, (STEPS, 2)).astype(np.float32)),
                rewards=[0.5] * STEPS,
                terminations=flags,
                truncations=[*flags[1:], True],
                infos=infos or None,
            )
        ]
    )
    return observations


@pytest.mark.parametrize("data_format", ["arrow", "hdf5", "parquet"])
def test_datasets_made_by_others_are_read(tmp_path, data_format):
    observations = make_foreign(tmp_path / "d", data_format)
    episode = EpisodeReader(tmp_path / "d").episode(0)
    np.testing.assert_array_equal(episode.frames, observations)
    assert episode.actions.shape == (STEPS, 2) and episode.rewards.tolist() == [0.5] * STEPS
    assert episode.seed is None and episode.controls is None and episode.depth is None


def test_infos_with_a_row_per_step_are_read_as_step_quantities(tmp_path):
    make_foreign(tmp_path / "d", "hdf5", success=np.arange(STEPS) % 2 == 1, pose=np.zeros((STEPS, 4, 4)))
    episode = EpisodeReader(tmp_path / "d").episode(0)
    assert episode.success is not None and episode.success.tolist() == [False, True] * (STEPS // 2)
    assert episode.pose is None


def test_what_a_dataset_lacks_for_training_is_listed(tmp_path, dataset):
    EpisodeReader(dataset).require("depth", "pose", "controls")
    make_foreign(tmp_path / "d", "hdf5")
    with pytest.raises(ValueError, match="has no depth, pose, which this needs; record it from an env whose info"):
        EpisodeReader(tmp_path / "d").require("depth", "pose")


def test_minari_ids_are_found_in_the_local_collection(dataset, tmp_path, monkeypatch):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    shutil.copytree(dataset, tmp_path / "minari" / "tiny" / "rooms-v0" / "data")
    assert len(EpisodeReader("tiny/rooms-v0")) == 2
    assert len(EpisodeReader(tmp_path / "minari" / "tiny" / "rooms-v0")) == 2


def test_missing_and_foreign_folders_are_refused(tmp_path):
    with pytest.raises(ValueError, match="nowhere does not exist; record one with"):
        EpisodeReader(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="holds no Minari dataset"):
        EpisodeReader(tmp_path)
    (tmp_path / "metadata.json").write_text(json.dumps({"name": "holiday pictures"}))
    with pytest.raises(ValueError, match="is not a Minari dataset: its metadata.json lacks data_format"):
        EpisodeReader(tmp_path)


def test_an_empty_dataset_is_refused(dataset):
    shutil.rmtree(dataset / "0")
    shutil.rmtree(dataset / "1")
    metadata = json.loads((dataset / "metadata.json").read_text())
    (dataset / "metadata.json").write_text(json.dumps(metadata | {"total_episodes": 0}))
    with pytest.raises(ValueError, match="has no episodes; record some with"):
        EpisodeReader(dataset)


def test_truncated_datasets_are_refused(dataset):
    file = dataset / "1" / "part-0.arrow"
    file.write_bytes(file.read_bytes()[:-500])
    reader = EpisodeReader(dataset)
    assert len(reader.episode(0)) == STEPS
    with pytest.raises(ValueError, match="episode 1 of .* is damaged .*; delete its folder and run the same"):
        reader.episode(1)
    file.unlink()
    with pytest.raises(ValueError, match="0 data files instead of one"):
        reader.episode(1)
    shutil.rmtree(dataset / "1")
    with pytest.raises(ValueError, match="is truncated: episode 1 of 2 is missing"):
        EpisodeReader(dataset)


def test_damaged_metadata_is_refused(dataset):
    for text in ('{"data_format": "arr', "5"):
        (dataset / "metadata.json").write_text(text)
        with pytest.raises(ValueError, match="metadata.json is damaged"):
            EpisodeReader(dataset)


@pytest.mark.parametrize("text", ["{}", "garbage", "[3]", '{"total_steps": "many"}'])
def test_damaged_metadata_of_an_episode_is_refused_by_name(dataset, text):
    """It gave a KeyError, or an error of JSON that did not say where."""
    (dataset / "1" / "metadata.json").write_text(text)
    with pytest.raises(ValueError, match=r"1/metadata.json is damaged \(.*\); delete the episode's folder and run"):
        EpisodeReader(dataset)


def test_episodes_outside_the_dataset_are_refused(dataset):
    with pytest.raises(IndexError, match="episode 2 does not exist: .* has 2 episodes"):
        EpisodeReader(dataset).episode(2)


def test_datasets_without_one_image_are_refused(tmp_path):
    make_foreign(tmp_path / "d", "hdf5", spaces.Box(-1, 1, (3,)))
    with pytest.raises(ValueError, match="has 0 images; exactly one Box of uint8"):
        EpisodeReader(tmp_path / "d")
