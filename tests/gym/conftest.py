"""A stand-in for MoviePy, to which Gymnasium's and SB3's recorders hand the frames of a video."""

import sys
import types

import pytest


@pytest.fixture
def clips(monkeypatch) -> list:
    """Collects (frames, fps) of each video that a recorder writes."""
    written = []

    class Clip:
        def __init__(self, frames, fps):
            written.append((frames, fps))

        def write_videofile(self, path, **_): ...

        def close(self): ...

    names = ("moviepy", "moviepy.video", "moviepy.video.io", "moviepy.video.io.ImageSequenceClip")
    for name in names:
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    sys.modules[names[-1]].ImageSequenceClip = Clip  # pyright: ignore[reportAttributeAccessIssue]
    return written
