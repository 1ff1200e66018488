"""Random steps across resets, forks, snapshots and restores: nothing may break, leak or be no number.

    python benchmarks/soak.py --steps 1000000

Now and then rows are reset, forked, saved and restored, and the same actions are taken twice from one snapshot, which
must show the same frames. Every number that an agent gets is looked at; the pages of memory are counted. It ends with
an error at the first fault, else with one JSON line, its names explained in docs/metrics.md.
"""

import argparse
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))  # as a script it would not find its neighbours

import ws_gym  # noqa: F401  (registers the ids)
from benchmarks.env_steps import resident_bytes
from worldscape.evaluate.report import Table, print_report, report_on
from worldscape.progress import Progress

EVENT_ODDS = 0.05
"""How likely something other than a step happens after a step."""
CHECK_EVERY = 200
"""Steps between counts of all pages."""
WARM_UP = 0.2
"""Share of the steps after which growth of resident memory is measured."""
REPLAYED = 3


class Fault(RuntimeError):
    """Something was lost, leaked or not a number."""


class Soak:
    """Worlds with random actions and events, all drawn from one seed; `counts` says what has happened so far."""

    def __init__(self, weights: str, num_envs: int, limit: int, seed: int, device: str = "cpu") -> None:
        options = {"weights": weights, "device": device, "max_episode_steps": limit, "task": "coverage"}
        self.envs: Any = gym.make_vec("WorldScape-Nav-v0", num_envs=num_envs, **options)
        self.rng = np.random.default_rng(seed)
        self.saved: tuple[Any, int] | None = None
        self.counts: Counter[str] = Counter()
        self._check_frames(*self.envs.reset(seed=seed))

    def step(self) -> None:
        """One step of all worlds, and perhaps an event."""
        self._take(self._draw_actions())
        self.counts["steps"] += self.envs.num_envs
        if self.rng.random() < EVENT_ODDS:
            events = (self.reset, self.fork, self.save, self.restore, self.replay)
            event = events[self.rng.integers(len(events))]
            event()
            self.counts[event.__name__] += 1
        if self.counts["steps"] // self.envs.num_envs % CHECK_EVERY == 0:
            self.check_pages()

    def reset(self) -> None:
        """Open new worlds in some rows."""
        mask = np.zeros(self.envs.num_envs, dtype=bool)
        mask[self._draw_rows()] = True
        self._check_frames(*self.envs.reset(options={"reset_mask": mask}))

    def fork(self) -> None:
        """Make some rows copies of one."""
        source, *rows = self.rng.permutation(self.envs.num_envs).tolist()
        if rows:
            self._check_frames(*self.envs.fork(source, rows[: self.rng.integers(1, len(rows) + 1)]))

    def save(self) -> None:
        """Keep one world as a value, in the place of the last one."""
        row = int(self.rng.integers(self.envs.num_envs))
        self.saved = self.envs.snapshot([row]), row

    def restore(self) -> None:
        """Go on with the kept world in some rows."""
        if self.saved is not None:
            self._check_frames(*self.envs.restore(self.saved[0], self._draw_rows()))

    def replay(self) -> None:
        """Take the same actions twice from one snapshot of all worlds. Raises Fault where frames differ."""
        saved, actions = self.envs.snapshot(), [self._draw_actions() for _ in range(REPLAYED)]
        goes_on = ~self.envs.unwrapped._core.needs_reset  # the next step opens the others anew, each time another world
        first = [self._take(action) for action in actions]
        self._check_frames(*self.envs.restore(saved))
        for (frames, ended), action in zip(first, actions, strict=True):
            again, has_ended = self._take(action)
            is_same = (frames == again).all((1, 2, 3)) & (ended == has_ended)
            if not is_same[goes_on].all():
                raise Fault("the same actions from one snapshot showed other frames, or other ends")
            goes_on = goes_on & ~ended
            self.counts["compared"] += int(goes_on.sum())

    def check_pages(self) -> None:
        """Raises RuntimeError for pages that leak, are free but in use, or are counted wrongly."""
        memory = self.envs.unwrapped._core.engine.state.memory
        memory.check()
        self.counts["pages"] = max(self.counts["pages"], memory.store.num_used())

    def _take(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        frames, rewards, terminated, truncated, infos = self.envs.step(actions)
        self._check_frames(frames, {**infos, "reward": rewards})
        self.counts["episodes"] += int((terminated | truncated).sum())
        return frames, terminated | truncated

    def _check_frames(self, frames: np.ndarray, infos: dict[str, Any]) -> None:
        if frames not in self.envs.observation_space:
            raise Fault(f"observations {frames.dtype} {frames.shape} are not in {self.envs.observation_space}")
        wrong = find_wrong(infos)
        if wrong:
            raise Fault(f"{', '.join(wrong)} not finite after {self.counts['steps']} steps")

    def _draw_actions(self) -> np.ndarray:
        return self.rng.integers(0, self.envs.single_action_space.n, self.envs.num_envs)

    def _draw_rows(self) -> list[int]:
        count = self.rng.integers(1, self.envs.num_envs + 1)
        return self.rng.permutation(self.envs.num_envs)[:count].tolist()


def find_wrong(infos: dict[str, Any]) -> list[str]:
    """Names of the infos, groups and all, that hold something other than finite numbers."""
    wrong = []
    for name, value in infos.items():
        if isinstance(value, dict):
            wrong += [f"{name}.{part}" for part in find_wrong(value)]
        elif not np.isfinite(value).all():
            wrong.append(name)
    return wrong


def soak(options: argparse.Namespace) -> dict[str, float]:
    """Run the soak -> flat metrics. Raises RuntimeError at the first fault, and when memory grew too much."""
    worlds = Soak(options.weights, options.num_envs, options.limit, options.seed, options.device)
    rounds, begin, early = -(-options.steps // options.num_envs), time.perf_counter(), resident_bytes()
    with Progress("rounds of steps", total=rounds) as progress:
        for done in range(1, rounds + 1):
            worlds.step()
            if done == max(1, round(WARM_UP * rounds)):
                early = resident_bytes()
            progress.update()
    worlds.check_pages()
    seconds, growth = time.perf_counter() - begin, (resident_bytes() - early) / 2**20
    worlds.envs.close()
    if growth > options.max_growth:
        raise Fault(f"resident memory grew by {growth:.1f} MiB, more than --max-growth {options.max_growth:g}")
    counts = {f"num_{name}": float(worlds.counts[name]) for name in ("steps", "episodes", "reset", "fork", "save")}
    counts |= {f"num_{name}": float(worlds.counts[name]) for name in ("restore", "replay", "compared", "pages")}
    return {**counts, "memory_growth_mb": growth, "env_steps_per_second": worlds.counts["steps"] / seconds}


def main(arguments: list[str] | None = None) -> None:
    """Soak, print a table, end with one JSON line; exit code 1 after a fault."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", default="nano", help="shipped name, or a directory of weights; 'debug': random")
    parser.add_argument("--steps", type=int, default=1_000_000, help="env steps, all worlds together")
    parser.add_argument("--num-envs", type=int, default=16)
    parser.add_argument("--limit", type=int, default=100, help="steps of an episode")
    parser.add_argument("--max-growth", type=float, default=64.0, help="MiB by which the process may grow")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    if options.steps < 1 or options.num_envs < 1:
        parser.error("--steps and --num-envs are at least 1")
    begin = time.perf_counter()
    try:
        metrics = soak(options)
    except (ValueError, RuntimeError) as error:
        sys.exit(f"soak: error: {error}")
    table = Table(title="soak", columns=["", ""], rows=[[name, value] for name, value in metrics.items()])
    report = report_on("soak", options.weights, options.device, time.perf_counter() - begin, metrics)
    print_report(report, [table])


if __name__ == "__main__":
    main()
