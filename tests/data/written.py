"""Datasets of episodes that were rolled in the test's own process."""

from pathlib import Path

import gymnasium as gym
from minari.data_collector import EpisodeBuffer

from worldscape.data.minari_io import SETTINGS
from worldscape.data.minari_writer import DatasetWriter, EpisodeWriter


def write_dataset(
    path: Path, env: gym.Env, *episodes: EpisodeBuffer, is_ours: bool = True, seed: int | None = None
) -> Path:
    """A dataset of these episodes of an env, ours or as others would make it; seed: of all of them."""
    spaces = {"observation_space": env.observation_space, "action_space": env.action_space}
    dataset = DatasetWriter(path, **spaces, spec=None, settings={"env": "written"})
    writer = EpisodeWriter(path)
    for index, episode in enumerate(episodes):
        writer.write(index, EpisodeBuffer(**{**vars(episode), "id": index, "seed": index if seed is None else seed}))
        dataset.adopt_pending()
    writer.close()
    if not is_ours:
        file = path / "metadata.json"
        file.write_text(file.read_text().replace(SETTINGS, "somebody"))
    return path
