"""Judged episodes of the toy simulator, walked once."""

import pytest

from tests.evaluate.panorama import PanoramaEnv, random_keys
from worldscape.evaluate.episodes import EpisodeBatch, Judge


@pytest.fixture(scope="session")
def judge() -> Judge:
    return Judge(policy=random_keys, make_env=lambda num_steps: PanoramaEnv())


@pytest.fixture(scope="session")
def episodes(judge: Judge) -> EpisodeBatch:
    return judge.episodes(5, 12)
