"""PPO from end to end, the learner in the loop: steps a second in the dream against the same PPO in the simulator.

    python benchmarks/ppo.py --tasks goal_object,reach --weights nano

Dream and simulator take turns, one update each, since a machine's own speed drifts; the first update of each is not
timed. The simulators are stepped one after another in this process, as the examples do. The last line is one JSON
object, its names explained in docs/metrics.md.
"""

import argparse
import sys
import time
from pathlib import Path
from typing import NamedTuple

import torch

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))  # as a script it would not find its neighbours

from benchmarks.clock import wait_for
from worldscape.evaluate.counterparts import COUNTERPARTS
from worldscape.evaluate.report import Table, print_report, report_on
from worldscape.policy import PixelPolicy
from worldscape.progress import Progress
from ws_gym.ppo import Recipe, Worlds, collect, fit_policy, improve, make_worlds

ARENAS = ("dream", "simulator")


class Spent(NamedTuple):
    """Seconds of one update: acting in the worlds, and improving the policy."""

    rollout: float
    learner: float


class Trainee:
    """A policy of the examples' size that learns in some worlds, one update at a time."""

    def __init__(self, worlds: Worlds, recipe: Recipe) -> None:
        self.worlds, self.recipe = worlds, recipe
        self.policy = PixelPolicy(fit_policy(worlds)).to(worlds.device)
        self.optimizer = torch.optim.Adam(self.policy.parameters(), lr=recipe.lr)
        self.generator = torch.Generator(worlds.device).manual_seed(0)
        self.present = worlds.open(0, self.policy.config.frames)

    def update(self) -> Spent:
        """One update of PPO, timed."""
        begin = self._now()
        rollout, last = collect(self.worlds, self.policy, self.present, self.recipe.num_steps, self.generator)
        acted = self._now()
        improve(self.policy, self.optimizer, rollout, last, self.recipe, self.generator)
        return Spent(acted - begin, self._now() - acted)

    def _now(self) -> float:
        """The clock, once the device has done what it was given."""
        wait_for(str(self.worlds.device))
        return time.perf_counter()


def measure(task: str, options: argparse.Namespace) -> dict[str, float]:
    """All metrics of one task. Raises ValueError for weights that do not know its controls."""
    recipe, pair = Recipe(num_steps=options.steps), COUNTERPARTS[task]
    settings = {"num_envs": options.num_envs, "limit": options.limit, "device": options.device}
    trainees = [
        Trainee(make_worlds(task, env, options.weights, starts=options.starts, **settings), recipe)
        for env in (pair.dream, pair.simulator)
    ]
    spent: list[list[Spent]] = [[] for _ in trainees]
    with Progress(f"updates of {task}", total=options.updates + 1) as progress:
        for _ in range(options.updates + 1):
            for trainee, row in zip(trainees, spent, strict=True):
                row.append(trainee.update())
            progress.update()
    for trainee in trainees:
        trainee.worlds.close()
    return summarise(task, spent, options.num_envs * options.steps)


def summarise(task: str, spent: list[list[Spent]], steps: int) -> dict[str, float]:
    """Seconds of each update in dream and simulator, the first of them a warm-up, of `steps` env steps each -> metrics.

    A rate is the steps of all timed updates over their time.
    """
    found: dict[str, float] = {}
    for arena, updates in zip(ARENAS, spent, strict=True):
        acting, learning = (sum(column) for column in zip(*updates[1:], strict=True))
        total = steps * (len(updates) - 1)
        found[f"ppo_steps_per_second_{task}_in_{arena}"] = total / (acting + learning)
        found[f"rollout_steps_per_second_{task}_in_{arena}"] = total / acting
        found[f"learner_share_{task}_in_{arena}"] = learning / (acting + learning)
    dream, simulator = (found[f"ppo_steps_per_second_{task}_in_{arena}"] for arena in ARENAS)
    return {**found, f"dream_over_simulator_{task}": dream / simulator}


def read_options(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", default="goal_object,reach", help=f"comma-separated: {', '.join(COUNTERPARTS)}")
    parser.add_argument("--weights", default="nano", help="of the dream: a shipped name, or a directory")
    parser.add_argument("--starts", help="where dreams begin; default: the environment's own")
    parser.add_argument("--num-envs", type=int, default=16)
    parser.add_argument("--steps", type=int, default=128, help="of each world in one update")
    parser.add_argument("--updates", type=int, default=4, help="timed ones")
    parser.add_argument("--limit", type=int, default=100, help="steps of an episode")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=0, help="torch threads; 0 for torch's own choice")
    options = parser.parse_args(arguments)
    options.tasks = options.tasks.split(",")
    unknown = [task for task in options.tasks if task not in COUNTERPARTS]
    if unknown:
        parser.error(f"--tasks {','.join(unknown)} unknown; choose from {', '.join(COUNTERPARTS)}")
    if min(options.num_envs, options.steps, options.updates, options.limit) < 1 or options.threads < 0:
        parser.error("--num-envs, --steps, --updates and --limit are at least 1, --threads is not negative")
    return options


def main(arguments: list[str] | None = None) -> None:
    """Measure, print a table, end with one JSON line."""
    begin, options = time.perf_counter(), read_options(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    found: dict[str, float] = {}
    try:
        for task in options.tasks:
            found |= measure(task, options)
    except ValueError as error:
        sys.exit(f"ppo: error: {error}")
    metrics = {**found, **{name: vars(options)[name] for name in ("num_envs", "updates")}}
    metrics["steps_per_update"] = options.num_envs * options.steps
    table = Table(title="PPO, learner included", columns=["", ""], rows=[[*row] for row in metrics.items()])
    report = report_on("ppo", options.weights, options.device, time.perf_counter() - begin, metrics)
    print_report(report, [table])


if __name__ == "__main__":
    main()
