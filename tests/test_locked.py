"""Two processes in one folder would write over each other's files."""

import os
import subprocess
import sys

import pytest

from worldscape.locked import locked

STREAMS = ("stdin", "stdout", "stderr")
HOLD = "import sys, pathlib, worldscape.locked as lock\nwith lock.locked(pathlib.Path(sys.argv[1])): {}"


def start(folder, held: str) -> subprocess.Popen:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    command = [sys.executable, "-c", HOLD.format(held), str(folder)]
    return subprocess.Popen(command, env=environment, text=True, **dict.fromkeys(STREAMS, subprocess.PIPE))


def test_a_second_process_is_told_who_holds_the_folder(tmp_path):
    with locked(tmp_path / "run"):
        _, error = start(tmp_path / "run", "pass").communicate()
    assert f"run is in use by process {os.getpid()}; wait until it ends, or choose another --out" in error
    with locked(tmp_path / "run"):
        pass


def test_a_process_that_is_killed_leaves_the_folder_free(tmp_path):
    holder = start(tmp_path, "print('held', flush=True); sys.stdin.read()")
    try:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        with pytest.raises(ValueError, match=f"in use by process {holder.pid}"), locked(tmp_path):
            pass
    finally:
        holder.kill()
        holder.communicate()
    with locked(tmp_path):
        pass
