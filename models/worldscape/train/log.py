"""What a run tells people: a progress bar (plain lines without a terminal), OUT/log.jsonl, OUT/tb, OUT/samples."""

from __future__ import annotations

import importlib
import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from worldscape.atomic import whole_file
from worldscape.films import write_film
from worldscape.train.config import TrainConfig

STATUS_FILE = "status.json"


class RunLog:
    """Averages loss parts over log_every steps and writes them everywhere; used as a context manager.

    A resumed run drops what was logged after the checkpoint, so steps never appear twice.
    Raises ImportError naming the extra when tensorboard (or tqdm on a terminal) is missing.
    """

    def __init__(self, out: Path, name: str, config: TrainConfig, step: int, is_main: bool = True) -> None:
        self.out, self.config, self.is_main = out, config, is_main
        self._sums: dict[str, Tensor] = {}
        self._count = 0
        self._since = time.perf_counter()
        self._file = self._board = self._bar = None
        if is_main:
            out.mkdir(parents=True, exist_ok=True)
            self._board = _open_board(out / "tb", step) if config.tensorboard else None
            self._bar = _open_bar(name, config.steps, step) if sys.stdout.isatty() else None
            self._file = _reopen(out / "log.jsonl", step)
            self._write_status(step, "running")

    def __enter__(self) -> RunLog:
        return self

    def __exit__(self, *_: object) -> None:
        for sink in (self._file, self._board, self._bar):
            if sink is not None:
                sink.close()

    def say(self, text: str) -> None:
        """A line for the reader."""
        if self._bar is not None:
            self._bar.write(text)
        elif self.is_main:
            print(text, flush=True)

    def end(self, step: int, why: str) -> None:
        """The last word: "finished", "minutes" or the name of a signal."""
        if not self.is_main:
            return
        self._write_status(step, why)
        stopped = f"stopped at step {step} of {self.config.steps} ({why}): the same command goes on from here"
        self.say(f"finished {step} steps: {self.out / 'weights'}" if why == "finished" else stopped)

    def add(self, parts: dict[str, Tensor]) -> None:
        """Take the scalars of one step into the running mean."""
        for key, value in parts.items():
            self._sums[key] = self._sums.get(key, torch.zeros_like(value)) + value
        self._count += 1

    def flush(self) -> dict[str, Tensor]:
        """The means since the last flush; parts that appear now and then are averaged over all steps."""
        means = {key: total / self._count for key, total in self._sums.items()}
        self._sums, self._count = {}, 0
        return means

    def write(self, step: int, means: dict[str, Tensor], lr: float, num_steps: int) -> None:
        """One log entry for the `num_steps` steps that end at `step`."""
        if self._file is None:
            return
        now = time.perf_counter()
        speed, self._since = num_steps / max(now - self._since, 1e-9), now
        entry = {"step": step, **{key: float(value) for key, value in means.items()}, "lr": lr, "it_s": speed}
        self._file.write(json.dumps(entry) + "\n")
        self._file.flush()
        if self._board is not None:
            for key, value in entry.items():
                self._board.add_scalar(key, value, step)
        self._show(entry, (self.config.steps - step) / speed)

    @contextmanager
    def clock_stopped(self) -> Iterator[None]:
        """Leave what happens in here (checkpoints, samples) out of it/s."""
        paused_at = time.perf_counter()
        yield
        self._since += time.perf_counter() - paused_at

    def write_samples(self, samples: dict[str, np.ndarray], step: int) -> None:
        """Pictures uint8 [h,w,3] as PNG, videos uint8 [T,h,w,3] as MP4, in OUT/samples and (pictures) TensorBoard."""
        import imageio.v3 as imageio

        folder = self.out / "samples"
        folder.mkdir(exist_ok=True)
        for name, picture in samples.items():
            if picture.dtype != np.uint8 or picture.ndim not in (3, 4):
                raise ValueError(f"sample {name!r} is {picture.dtype} {picture.shape}: give uint8 [h,w,3] or [T,h,w,3]")
            if picture.ndim == 4:
                write_film(folder / f"{name}_{step:08d}.mp4", picture, fps=8)
                continue
            imageio.imwrite(folder / f"{name}_{step:08d}.png", picture)
            if self._board is not None:
                self._board.add_image(name, picture, step, dataformats="HWC")

    def _write_status(self, step: int, why: str) -> None:
        status = {"status": why, "step": step, "steps": self.config.steps}
        status |= {"lease": self.config.lease} if self.config.lease else {}
        with whole_file(self.out / STATUS_FILE) as partial:
            partial.write_text(json.dumps(status) + "\n")

    def _show(self, entry: dict[str, Any], seconds_left: float) -> None:
        hidden = ("step", "it_s")
        text = " ".join(f"{key} {value:.4g}" for key, value in entry.items() if key not in hidden)
        if self._bar is not None:
            self._bar.set_postfix_str(text)
            self._bar.update(entry["step"] - self._bar.n)
            return
        share = f"step {entry['step']}/{self.config.steps}"
        print(f"{share} {text} {entry['it_s']:.2f} it/s ETA {format_seconds(seconds_left)}", flush=True)


def format_seconds(seconds: float) -> str:
    """3725 -> "1:02:05"."""
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


def _reopen(path: Path, step: int) -> Any:
    """Open the log for appending, without entries after `step` and without a torn last line."""
    kept = []
    if path.exists():
        whole = path.read_text().rpartition("\n")[0]
        kept = [line for line in whole.split("\n") if line and json.loads(line)["step"] <= step]
    with whole_file(path) as partial:
        partial.write_text("".join(line + "\n" for line in kept))
    return path.open("a")


def _open_board(folder: Path, step: int) -> Any:
    module = import_extra("torch.utils.tensorboard", "tensorboard", "or switch it off with --set tensorboard=false")
    return module.SummaryWriter(folder, purge_step=step + 1 if step else None)


def _open_bar(name: str, steps: int, step: int) -> Any:
    module = import_extra("tqdm", "tqdm", "or send the output to a file")
    return module.tqdm(total=steps, initial=step, desc=name, unit="step")


def import_extra(module: str, package: str, otherwise: str) -> Any:
    """Import a module of the extra "train". Raises ImportError with the remedy when its package is missing."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(f"{package} is not installed: pip install 'worldscape[train]', {otherwise}") from error
