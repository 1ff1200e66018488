"""Playing: keys become actions, a walk becomes a video, and a window reads the keyboard."""

import importlib.util

import cv2
import numpy as np
import pytest

from tests.data.tiny_world import EPISODE_STEPS, TinyWorld
from tests.videos import read_video
from worldscape import cli, play
from worldscape.window import KeyWindow

needs_pygame = pytest.mark.skipif(importlib.util.find_spec("pygame") is None, reason="needs pygame")


@pytest.fixture
def walk() -> play.Walk:
    return play.Walk(TinyWorld("multi_discrete"), seed=0)


def test_keys_may_have_counts_and_spaces():
    assert play.parse_keys("w3 L2.a") == ["W", "W", "W", "L", "L", ".", "A"]


@pytest.mark.parametrize("text", ["", "3W", "WX", "W-1", "forward"])
def test_unknown_keys_are_refused(text):
    with pytest.raises(ValueError, match="is not understood; write W A S D to walk"):
        play.parse_keys(text)


@pytest.mark.parametrize(
    ("held", "action"),
    [("W", [1, 0, 0, 0]), ("S", [2, 0, 0, 0]), ("DL", [0, 1, 1, 0]), ("AJK", [0, 2, 2, 2]), ("WSI", [0, 0, 0, 1])],
)
def test_keys_become_combined_actions(held, action):
    np.testing.assert_array_equal(play.keys_to_action(held), action)
    assert not play.keys_to_action(".").any()


def test_the_action_of_a_key_is_what_the_world_takes_it_for():
    """The axes and signs of the keys are those of the world's `multi_discrete` actions."""
    actions = pytest.importorskip("ws_gym.actions").make_action_mode("multi_discrete")
    rows = {key: actions.to_controls(play.keys_to_action(key)[None], np.ones(1, bool))[0] for key in "WASDJLIK"}
    right, forward, yaw, pitch = 0, 2, 3, 4
    expected = {"W": (forward, 1), "S": (forward, -1), "D": (right, 1), "A": (right, -1)}
    expected |= {"L": (yaw, 1), "J": (yaw, -1), "I": (pitch, 1), "K": (pitch, -1)}
    for key, (axis, sign) in expected.items():
        assert np.flatnonzero(rows[key]).tolist() == [axis] and np.sign(rows[key][axis]) == sign


def test_a_walk_goes_on_in_the_next_world_when_an_episode_ends(walk):
    for _ in range(EPISODE_STEPS - 1):
        walk.step("W")
    assert walk.frame[0, 0, 0] == 50 and walk.num_worlds == 1
    walk.step("W")
    assert (walk.num_worlds, walk.num_steps, walk.frame[-1, 0, 0]) == (2, 0, 2)


def test_command_writes_a_video_of_the_walk(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(play, "WORLD", "tests.data.tiny_world:TinyWorld-v0")
    out = tmp_path / "new" / "walk.mp4"
    assert cli.main(["play", "--keys", "W2A", "--out", str(out)]) == 0
    assert "4 frames" in capsys.readouterr().out
    frames = read_video(out)
    assert frames.shape == (4, play.VIDEO_PIXELS, play.VIDEO_PIXELS, 3)
    walking = frames[:, play.VIDEO_PIXELS // 32].mean((1, 2))
    np.testing.assert_allclose(walking, [0, 50, 50, 0], atol=12)


def test_command_draws_a_map_of_what_was_walked(tmp_path):
    video, picture = tmp_path / "walk.mp4", tmp_path / "maps" / "map.png"
    options = ["--weights", "debug", "--starts", "drawn", "--keys", "L2W"]
    assert cli.main(["play", *options, "--out", str(video), "--map", str(picture)]) == 0
    drawn = cv2.imread(str(picture))
    assert drawn is not None and drawn.shape == (play.MAP_PIXELS, play.MAP_PIXELS, 3)
    blue, green, red = drawn.astype(int).reshape(-1, 3).T
    assert ((red - blue > 100) & (red - green > 100)).any()  # one stands in red: channels are not swapped
    assert video.stat().st_size > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--keys", "W"], "--keys and --out belong together"),
        (["--keys", "W", "--out", "w.mp4", "--fps", "0"], "--fps is 0; it must be at least 1"),
        (
            ["--keys", "W", "--out", "w.mp4", "--map", "map.txt"],
            "--map map.txt is no name of a picture; end it in .png",
        ),
        (["--keys", "W", "--out", "w.mp4", "--seed", "-1"], "--seed is -1; it must not be negative"),
        ([], "there is no display to open a window on; without a window, write a video: --keys"),
    ],
)
def test_command_refuses_what_it_cannot_do(arguments, message, monkeypatch, capsys):
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "SDL_VIDEODRIVER"):
        monkeypatch.delenv(name, raising=False)
    assert cli.main(["play", *arguments]) == 1
    assert message in capsys.readouterr().err


@needs_pygame
def test_window_steps_the_world_by_its_keyboard(walk, monkeypatch):
    """Two steps forward, the second while turning, then another world, then Esc."""
    import pygame

    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    window = KeyWindow(fps=1000)
    taps = iter([(pygame.K_w,), (pygame.K_w, pygame.K_RIGHT), (), (pygame.K_r,), (pygame.K_ESCAPE,)])
    shown = []
    show = window.show

    def press_and_show(frame, caption):
        for key in next(taps):
            pygame.event.post(pygame.event.Event(pygame.KEYDOWN, key=key))
        show(frame, caption)
        shown.append((caption, walk.frame[0, 0, 0], walk.frame[2, 0, 0]))

    monkeypatch.setattr(window, "show", press_and_show)
    play.play_in_window(walk, window)
    window.close()
    assert shown == [
        ("WorldScape: world 1, step 0", 0, 0),
        ("WorldScape: world 1, step 1", 50, 0),
        ("WorldScape: world 1, step 2", 50, 50),
        ("WorldScape: world 1, step 2", 50, 50),
        ("WorldScape: world 2, step 0", 0, 0),
    ]


@needs_pygame
def test_window_shows_the_frame(monkeypatch):
    import pygame

    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    window = KeyWindow(fps=1000)
    frame = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    window.show(frame, "frame")
    surface = pygame.display.get_surface()
    assert surface is not None
    np.testing.assert_array_equal(pygame.surfarray.array3d(surface).swapaxes(0, 1), frame)
    window.close()
