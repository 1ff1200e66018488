"""Files that are there whole or not at all."""

from __future__ import annotations

import pytest

from worldscape.atomic import whole_file


def test_a_file_appears_when_it_is_whole(tmp_path):
    path = tmp_path / "made" / "file.txt"
    with whole_file(path) as partial:
        partial.write_text("half")
        assert not path.exists() and partial.parent == path.parent
    assert path.read_text() == "half" and list(path.parent.iterdir()) == [path]


def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "file.txt"
    path.write_text("old")
    with pytest.raises(OSError, match="disk full"), whole_file(path) as partial:
        partial.write_text("new")
        raise OSError("disk full")
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]
