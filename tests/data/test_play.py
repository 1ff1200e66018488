"""Playing: keys become actions, a walk becomes a video, and a window reads the keyboard."""

import argparse
import importlib.util
from typing import Any

import cv2
import numpy as np
import pytest

from tests.data.tiny_world import EPISODE_STEPS, TinyWorld
from tests.videos import read_video
from worldscape import cli, play
from worldscape.splats.ply import load_ply
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


def world_options(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    play.add_world_options(parser)
    return parser.parse_args(arguments)


def test_a_world_goes_on_until_another_is_asked_for(monkeypatch):
    """Walks went on in another room, without a word, after 300 steps or where a head took something for the goal."""
    monkeypatch.setattr(play, "WORLD", "tests.data.tiny_world:TinyWorld-v0")
    walk = play.Walk(play.make_world(world_options()), seed=0)
    for _ in range(3 * EPISODE_STEPS):
        walk.step("W")
    assert (walk.num_worlds, walk.num_steps, walk.frame[-1, 0, 0]) == (1, 3 * EPISODE_STEPS, 1)
    walk.open()
    assert (walk.num_worlds, walk.num_steps, walk.frame[-1, 0, 0]) == (2, 0, 2)


def test_worlds_are_made_of_the_noise_that_was_asked_for():
    frames = []
    for temperature in ([], ["--temperature", "1"], ["--temperature", "3"]):
        env = play.make_world(world_options("--weights", "debug", "--starts", "drawn", *temperature))
        env.reset(seed=0)
        frames.append(env.step(play.keys_to_action("W"))[0])
        env.close()
    assert np.array_equal(frames[0], frames[1]) and not np.array_equal(frames[0], frames[2])


def test_the_learned_world_has_neither_limit_nor_end():
    env = play.make_world(world_options("--weights", "debug", "--starts", "drawn"))
    assert env.spec is not None and env.spec.max_episode_steps is None
    env.reset(seed=0)
    _, reward, terminated, truncated, _ = env.step(play.keys_to_action("W"))
    assert (reward, terminated, truncated) == (0.0, False, False)
    env.close()


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


def test_a_world_is_kept_and_goes_on(tmp_path):
    """Three steps, kept and loaded after the second, are three steps in one go."""
    kept, ply = tmp_path / "kept" / "world.bin", tmp_path / "place.ply"
    options = ["play", "--weights", "debug", "--starts", "drawn"]
    films = {keys: tmp_path / f"{keys}.gif" for keys in ("LLW", "LL", "W")}
    assert cli.main([*options, "--keys", "LLW", "--out", str(films["LLW"])]) == 0
    assert cli.main([*options, "--keys", "LL", "--out", str(films["LL"]), "--save", str(kept), "--ply", str(ply)]) == 0
    others = ["--seed", "5", "--load", str(kept)]
    assert cli.main([*options, *others, "--keys", "W", "--out", str(films["W"])]) == 0
    whole, _, rest = (read_video(film) for film in films.values())
    np.testing.assert_array_equal(rest, whole[2:])
    assert len(load_ply(ply).means[0]) > 64 * 64


def test_command_refuses_to_go_on_from_what_is_no_world(tmp_path, capsys):
    (tmp_path / "world.bin").write_bytes(b"nothing")
    assert cli.main(["play", "--keys", "W", "--out", "w.mp4", "--load", str(tmp_path / "world.bin")]) == 1
    assert "not a snapshot of worlds" in capsys.readouterr().err


def test_command_takes_a_picture_and_its_view(tmp_path, capsys):
    photo, out = tmp_path / "photo.png", tmp_path / "walk.mp4"
    cv2.imwrite(str(photo), np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8))
    options = ["play", "--weights", "debug", "--keys", "W", "--out", str(out), "--starts"]
    assert cli.main([*options, str(photo), "--fov", "60"]) == 0
    assert cli.main([*options, str(photo), "--fov", "5"]) == 1
    assert cli.main([*options, "drawn", "--fov", "60"]) == 1
    assert [line.split(";")[0] for line in capsys.readouterr().err.splitlines()] == [
        "worldscape: error: the reset option fov=5.0 is no field of view",
        "worldscape: error: the reset option fov=60.0 is for a picture or video",
    ]


class TestHands:
    def test_keys_held_together_add_up(self):
        env: Any = play.make_world(world_options("--weights", "debug"), hands=True)
        actions = env.unwrapped.get_keys_to_action()
        held = play.hand_action(["W", "G"], actions)
        np.testing.assert_array_equal(held, actions[(ord("w"),)] + actions[(ord("g"),)])
        assert not play.hand_action(["W", "S", "."], actions).any()
        assert env.action_space.contains(held)
        env.close()

    def test_every_letter_is_one_of_the_world(self):
        env: Any = play.make_world(world_options("--weights", "debug"), hands=True)
        assert {chr(key).upper() for (key,) in env.unwrapped.get_keys_to_action()} == set(play.HANDLING.letters)
        assert play.HANDLING.next_world not in play.HANDLING.letters
        env.close()

    def test_command_moves_a_hand(self, tmp_path, capsys):
        out = tmp_path / "hand.mp4"
        options = ["--weights", "debug", "--hands", "--keys", "W2G", "--out", str(out)]
        assert cli.main(["play", *options]) == 0
        assert "4 frames" in capsys.readouterr().out and len(read_video(out)) == 4

    def test_keys_that_walk_are_not_known(self):
        with pytest.raises(ValueError, match="write W A S D to move the hand, R F to lift"):
            play.parse_keys("WL", play.HANDLING)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--keys", "W"], "--keys and --out belong together"),
        (["--keys", "W99999999999", "--out", "w.mp4"], "--keys are 99999999999 steps; walk at most 100000"),
        (["--keys", "W", "--out", "w.webm"], "w.webm is no name of a film; give a file that ends in one of .mp4, .gif"),
        (["--keys", "W", "--out", "walk"], "walk is no name of a film"),
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
def test_command_films_what_is_walked_in_the_window(tmp_path, monkeypatch, capsys):
    """And says when a world is changed, and what was written in the end."""
    monkeypatch.setattr(play, "WORLD", "tests.data.tiny_world:TinyWorld-v0")
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    keyboard = [("W", False), ("", False), ("", True), ("WD", False)]

    def read_keyboard(window):
        window.held, window.wants_reset = keyboard.pop(0)
        window.is_open = bool(keyboard)

    monkeypatch.setattr(KeyWindow, "_read_keyboard", read_keyboard)
    out = tmp_path / "walk.mp4"
    assert cli.main(["play", "--fps", "1000", "--out", str(out)]) == 0
    told = capsys.readouterr().out
    assert "world 2 begins; the one before was left after 1 steps" in told and f"{out}: 4 frames" in told
    film = read_video(out)[:, play.VIDEO_PIXELS // 32].mean((1, 2))
    np.testing.assert_allclose(film, [0, 50, 0, 50], atol=12)


@needs_pygame
def test_what_was_walked_is_kept_when_the_terminal_stops_it(tmp_path, monkeypatch):
    monkeypatch.setattr(play, "WORLD", "tests.data.tiny_world:TinyWorld-v0")
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")

    def press_and_stop(window):
        if window.held:
            raise KeyboardInterrupt
        window.held = ["W"]

    monkeypatch.setattr(KeyWindow, "_read_keyboard", press_and_stop)
    assert cli.main(["play", "--fps", "1000", "--out", str(tmp_path / "walk.mp4")]) == 0
    assert len(read_video(tmp_path / "walk.mp4")) == 2


@needs_pygame
@pytest.mark.parametrize("driver", ["offscreen", "dummy"])
def test_a_display_that_does_not_answer_is_no_window(driver, monkeypatch):
    """SDL draws off the screen then, and `worldscape play` waited for keys that nobody could press."""
    import pygame

    monkeypatch.delenv("SDL_VIDEODRIVER", raising=False)
    monkeypatch.setenv("DISPLAY", ":77")
    monkeypatch.setattr(pygame.display, "init", lambda: None)
    monkeypatch.setattr(pygame.display, "get_driver", lambda: driver)
    with pytest.raises(OSError, match=f"no window can be seen here: SDL draws {driver}; .*write a video: --keys"):
        KeyWindow(fps=10)


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
