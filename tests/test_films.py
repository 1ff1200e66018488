"""Films: which names they may have, and that a file is there whole or not at all."""

from __future__ import annotations

import numpy as np
import pytest

from tests.videos import read_video
from worldscape import dream
from worldscape.cli import main
from worldscape.films import SUFFIXES, check_film, open_film, write_film

SHADES = [np.full((20, 24, 3), shade, np.uint8) for shade in (20, 120, 220)]


@pytest.mark.parametrize("suffix", [*SUFFIXES, ".MP4"])
def test_every_kind_of_film_is_read_back(tmp_path, suffix):
    path = tmp_path / "made" / f"film{suffix}"
    write_film(path, SHADES, 8)
    assert list(path.parent.iterdir()) == [path]
    np.testing.assert_allclose(read_video(path), SHADES, atol=6)


def test_frames_keep_their_size_but_for_an_odd_row_or_column(tmp_path):
    """`worldscape orbit --size 50` wrote 64 x 64 pixels, because ffmpeg's macro blocks have 16."""
    write_film(tmp_path / "film.mp4", [np.zeros((51, 50, 3), np.uint8)] * 2, 8)
    assert read_video(tmp_path / "film.mp4").shape == (2, 50, 50, 3)


@pytest.mark.parametrize("name", ["film", "film.png", "film.webm", "film.gif.txt", ""])
def test_other_names_are_refused(tmp_path, name):
    with pytest.raises(ValueError, match="is no name of a film; give a file that ends in one of .mp4, .gif"):
        check_film(tmp_path / name)


def test_a_folder_is_no_film(tmp_path):
    (tmp_path / "film.mp4").mkdir()
    with pytest.raises(ValueError, match="is no name of a film"):
        check_film(tmp_path / "film.mp4")


def test_a_film_without_frames_or_one_that_fails_leaves_the_old_file(tmp_path):
    path = tmp_path / "film.mp4"
    path.write_text("old")
    with pytest.raises(OSError, match="could not write"):
        write_film(path, [], 8)
    with pytest.raises(RuntimeError, match="the world fell apart"), open_film(path, 8) as add_frame:
        add_frame(SHADES[0])
        raise RuntimeError("the world fell apart")
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_a_name_is_looked_at_before_anything_is_dreamed(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(dream, "load_world", lambda *_: pytest.fail("it was on its way"))
    assert main(["dream", "--data", "rooms", "--out", str(tmp_path / "v" / "c")]) == 1
    assert "c is no name of a film" in capsys.readouterr().err and not list(tmp_path.iterdir())
