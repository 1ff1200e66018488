"""Gaussians of a world from its memory, and the film that flies through them."""

import argparse
import math

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.error import ClosedEnvironmentError, ResetNeeded

import ws_gym  # noqa: F401  (registers the env)
from tests.videos import read_video
from worldscape.cli import main
from worldscape.memory.pages import BLANK
from worldscape.orbit import orbit_poses, walk_and_rebuild
from worldscape.play import add_world_options, make_world
from worldscape.splats.ply import load_ply
from worldscape.splats.render import render


@pytest.fixture
def env():
    env = gym.make("WorldScape-Nav-v0", weights="debug", starts="drawn")
    yield env
    env.close()


def test_the_first_frame_is_seen_again_from_where_it_was_taken(env):
    """Memory holds one real frame after a reset; its Gaussians are opaque to 2 %, and soft by half a pixel, so that on
    the floor below the nearer neighbour comes first: depth is a little short, by less than one row of pixels."""
    frame, info = env.reset(seed=3)
    scene = env.unwrapped.reconstruct()
    assert scene.means.shape == (1, 64 * 64, 3)
    intrinsics = env.unwrapped._core.engine.state.intrinsics[:, None]
    picture = render(scene, torch.from_numpy(info["pose"])[None, None], intrinsics, 64)
    shown = np.moveaxis(picture.rgb[0, 0].numpy(), 0, -1) * 255
    error = (shown - frame.astype(np.float64))[2:-2, 2:-2]
    assert 10 * math.log10(255**2 / np.square(error).mean()) > 24
    depth = picture.depth[0, 0].numpy()[2:-2, 2:-2]
    assert np.median(np.abs(depth / info["depth"][2:-2, 2:-2] - 1)) < 0.04


def test_what_is_walked_is_added_once(env):
    env.reset(seed=3)
    env.step(5)
    env.step(0)
    memory = env.unwrapped._core.engine.state.memory
    pictures = memory.remembered().valid.sum().item()
    assert pictures == len(set(memory.tables.shown()[0].tolist()) - {BLANK}) > 1
    assert env.unwrapped.reconstruct().means.shape == (1, pictures * 64 * 64, 3)


def test_there_is_nothing_to_rebuild_before_reset_and_after_close(env):
    with pytest.raises(ResetNeeded, match="holds no world to reconstruct"):
        env.unwrapped.reconstruct()
    env.reset(seed=0)
    env.close()
    with pytest.raises(ClosedEnvironmentError):
        env.unwrapped.reconstruct()


def test_a_camera_in_orbit_looks_outwards_all_around():
    poses = orbit_poses(torch.tensor([1.0, 2.0, 3.0]), 0.5, 8)
    outwards = poses[:, :3, 3] - torch.tensor([1.0, 2.0, 3.0])
    torch.testing.assert_close(outwards, 0.5 * poses[:, :3, 2])
    torch.testing.assert_close(poses[:, :3, 2].sum(0), torch.zeros(3), atol=1e-5, rtol=0)


def test_orbit_writes_a_film_and_a_ply(tmp_path, capsys):
    command = ["orbit", "--weights", "debug", "--starts", "drawn", "--keys", "L2", "--frames", "2", "--size", "50"]
    assert main([*command, "--out", str(tmp_path / "orbit.mp4"), "--ply", str(tmp_path / "place.ply")]) == 0
    assert "2 frames" in capsys.readouterr().out
    assert read_video(tmp_path / "orbit.mp4").shape == (2, 50, 50, 3)
    assert load_ply(tmp_path / "place.ply").means.shape[1] >= 64 * 64


def test_orbit_walks_on_where_a_head_sees_the_goal():
    """Random weights see it everywhere: walks ended at once, and the rest of the place was not there."""
    parser = argparse.ArgumentParser()
    add_world_options(parser)
    env = make_world(parser.parse_args(["--weights", "debug", "--starts", "drawn"]))
    num_gaussians = [walk_and_rebuild(env, 3, ["L"] * turns).scene.means.shape[1] for turns in (1, 8)]
    assert num_gaussians[1] > 2 * num_gaussians[0]
    env.close()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["--frames", "0"], "--frames"),
        (["--size", "33"], "even"),
        (["--view", "180"], "--view"),
        (["--keys", "X"], "not understood"),
        (["--out", "orbit.webm"], "orbit.webm is no name of a film"),
    ],
)
def test_bad_options_are_one_clear_line(tmp_path, capsys, changes, message):
    assert main(["orbit", "--weights", "debug", "--out", str(tmp_path / "o.mp4"), *changes]) == 1
    error = capsys.readouterr().err
    assert message in error and error.startswith("worldscape: error:")
