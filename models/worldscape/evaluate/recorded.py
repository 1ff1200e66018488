"""Episodes of a recorded dataset as judged episodes: the only judge of those who have recordings and no simulator."""

from pathlib import Path

import numpy as np

from worldscape.data.clips import read_episodes
from worldscape.data.episode import Episode
from worldscape.evaluate.episodes import EpisodeBatch, concatenate_batches


def recorded_episodes(dataset: str | Path, size: int, num_episodes: int, num_steps: int) -> EpisodeBatch:
    """The first `num_steps` steps of the first episodes that have so many; of as many as there are, up to
    `num_episodes`. Actions that are not single numbers, and so no keys, become 0.

    Raises ValueError for what training refuses, for recordings with hands, and where all episodes are shorter.
    """
    episodes = read_episodes(dataset, size, trains=False)
    if episodes[0].hand_state is not None:
        raise ValueError(f"{dataset} has hands, of which recordings know too little to judge; give --source tabletop")
    long = [(number, episode) for number, episode in enumerate(episodes) if len(episode) >= num_steps]
    if not long:
        raise ValueError(
            f"all episodes of {dataset} are shorter than {num_steps} steps, the longest {max(map(len, episodes))}; "
            "choose shorter --horizons, or record longer episodes"
        )
    return concatenate_batches([_as_batch(episode, number, num_steps) for number, episode in long[:num_episodes]])


def _as_batch(episode: Episode, number: int, num_steps: int) -> EpisodeBatch:
    frames, steps = slice(num_steps + 1), slice(num_steps)
    actions = episode.actions if episode.actions.ndim == 1 else np.zeros(len(episode))
    nothing = np.zeros(len(episode))

    def rows(name: str, part: slice, dtype: type) -> np.ndarray:
        values = getattr(episode, name)
        return np.array((nothing if values is None else values)[part], dtype)[None]

    return EpisodeBatch(
        frames=rows("frames", frames, np.uint8),
        depth=rows("depth", frames, np.float32),
        pose=rows("pose", frames, np.float32),
        intrinsics=np.array(episode.intrinsics, np.float32)[None],
        actions=np.array(actions[steps], np.int64)[None],
        controls=rows("controls", steps, np.float32),
        realised=rows("realised", steps, np.float32),
        collision=rows("collision", steps, np.bool_),
        success=rows("success", steps, np.bool_),
        seeds=np.array([number if episode.seed is None else episode.seed % 2**63], np.int64),
    )
