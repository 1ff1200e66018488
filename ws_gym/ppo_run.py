"""What surrounds PPO in an example: options, checkpoints, curves, films, and the table at the end.

A run's folder gets TensorBoard curves (tb) and one as a picture (curve.png), films of held-out episodes (videos; the
last one, final.mp4, shows simulator and dream side by side), the policies of all checkpoints (policies), and the last
checkpoint, from which the same command goes on to the same weights. A simulator cannot be saved, so all worlds are
opened anew after each checkpoint.
"""

from __future__ import annotations

import argparse
import json
import math
from collections import deque
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from worldscape.evaluate.arenas import Arenas
from worldscape.evaluate.counterparts import COUNTERPARTS, Counterparts
from worldscape.evaluate.pictures import save_plot
from worldscape.evaluate.transfer import POLICY_FOLDER, play_everywhere, save_films, tabulate_plays
from worldscape.policy import (
    POLICY_FILE,
    PixelPolicy,
    PolicyConfig,
    load_tensors,
    save_policy,
    save_tensors,
)
from worldscape.progress import Progress
from worldscape.train.optim import load_optimizer_tensors, optimizer_tensors
from ws_gym.ppo import Recipe, Rollout, Worlds, fit_policy, learn, make_worlds

IDENTITY = (
    "env",
    "task",
    "preset",
    "starts",
    "dense",
    "steps",
    "num_envs",
    "limit",
    "checkpoints",
    "seed",
    "temperature",
    "hand_actions",
)
"""Options that a run must keep to go on from its checkpoint."""
WORLD_OPTIONS = ("num_envs", "limit", "device", "starts", "dense", "temperature", "hand_actions")
"""Options of the worlds to learn in."""
TOLD = ("num_steps", "minibatches", "looks")
"""Settings of the recipe that the command line may change, since they go with the number of worlds and layouts."""
FILMED = 4
"""Held-out episodes in the last film, which shows the policy in simulator and dream side by side."""
DEBUG_RECIPE = {"num_steps": 8, "epochs": 2, "minibatches": 2, "looks": 4, "see_epochs": 1, "see_minibatches": 2}
DEBUG_WIDTHS = {"frames": 2, "channels": (4, 4), "hidden": 16}
DEBUG_OPTIONS = {"steps": 64, "num_envs": 2, "limit": 5, "score_limit": 8, "episodes": 2, "checkpoints": 2}


@dataclass(frozen=True, kw_only=True)
class Lesson:
    """What an example teaches: tasks that share a dream and a simulator, the first one by default, and how.

    recipe, widths: settings of `Recipe` and of `PolicyConfig`; kinds: what a kind of hand actions changes of the
    recipe, by name; options: other defaults of the command line.
    """

    tasks: tuple[str, ...]
    recipe: Mapping[str, Any] = field(default_factory=dict)
    kinds: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    widths: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def counterparts(self) -> Counterparts:
        """The dream and the simulator of its tasks."""
        return COUNTERPARTS[self.tasks[0]]


def teach(lesson: Lesson, about: str | None, arguments: list[str] | None = None) -> None:
    """The whole command: train or go on, film and save now and then, end with the table of scores."""
    args = read_options(lesson, about, arguments)
    recipe = choose_recipe(lesson, args)
    worlds = make_worlds(args.task, args.env, args.preset, **{name: getattr(args, name) for name in WORLD_OPTIONS})
    config = fit_policy(worlds, **(DEBUG_WIDTHS if args.preset == "debug" else lesson.widths))
    run = Run(args, recipe, config)
    run.resume()
    scored = {"num_episodes": args.episodes, "limit": args.score_limit, "device": args.device}
    with Arenas(args.preset, task=args.task, hand_actions=args.hand_actions, **scored) as arenas:
        train(args, recipe, run, worlds, arenas)
        worlds.close()
        learned = trained_in(args)
        plays = play_everywhere(arenas, {learned: run.policy, "random": None}, num_filmed=FILMED)
    path = save_films(args.out / "videos" / "final.mp4", plays[learned])
    print(f"filmed in {path}\n{tabulate_plays(plays, args.task).to_text()}")


def choose_recipe(lesson: Lesson, args: argparse.Namespace) -> Recipe:
    """The lesson's recipe, with what the command line says of it."""
    told = {name: getattr(args, name) for name in TOLD if getattr(args, name) is not None}
    usual = {**lesson.recipe, **lesson.kinds.get(args.hand_actions, {})}
    return Recipe(**{**usual, **(DEBUG_RECIPE if args.preset == "debug" else {}), **told})


def read_options(lesson: Lesson, about: str | None, arguments: list[str] | None) -> argparse.Namespace:
    """The command line of a lesson; `--preset debug` makes a tiny run of what is not given."""
    pair = lesson.counterparts
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="nano", help="weights of the dream; 'debug': random ones and a tiny run")
    parser.add_argument("--env", choices=(pair.dream, pair.simulator), default=pair.dream, help="where to learn")
    parser.add_argument("--task", choices=lesson.tasks, default=lesson.tasks[0], help="what to learn")
    parser.add_argument("--starts", help="where dreams begin while learning; default: the environment's own")
    parser.add_argument("--temperature", type=float, default=1.0, help="of the dream's noise while learning")
    parser.add_argument("--out", type=Path, default=Path("runs/ppo"))
    parser.add_argument("--steps", type=count, default=300_000, help="env steps, all worlds together")
    parser.add_argument("--num-envs", type=count, default=16)
    parser.add_argument("--num-steps", type=count, help="steps of each world that make an update; fewer of more worlds")
    parser.add_argument("--minibatches", type=count, help="into how many parts an update is divided, in each epoch")
    parser.add_argument("--looks", type=count, help="openings of episodes that teach a policy with facts to see")
    parser.add_argument("--limit", type=count, default=100, help="steps of an episode while learning")
    parser.add_argument("--checkpoints", type=count, default=12, help="how many to write, denser early in the run")
    parser.add_argument("--episodes", type=count, default=100, help="held-out episodes of the final table")
    parser.add_argument("--score-limit", type=count, help="steps of a scored episode; default: the environment's own")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seed", type=int, default=0)
    parser.set_defaults(dense=False, hand_actions=None)
    if pair.has_dense:
        parser.add_argument("--dense", action="store_true", help="reward the way to the goal while learning too")
    if pair.hand_actions:
        usual: dict[str, Any] = {"choices": pair.hand_actions, "default": pair.usual_hand_actions}
        parser.add_argument("--hand-actions", **usual, help="thirteen changes of a hand, or four: move and close")
    parser.set_defaults(**lesson.options)
    if parser.parse_args(arguments).preset == "debug":
        parser.set_defaults(**DEBUG_OPTIONS)
    return parser.parse_args(arguments)


def count(text: str) -> int:
    """A whole number of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number of at least 1")
    return int(text)


def trained_in(args: argparse.Namespace) -> str:
    """ "dream" or "simulator"."""
    return "dream" if args.env == COUNTERPARTS[args.task].dream else "simulator"


def train(args: argparse.Namespace, recipe: Recipe, run: Run, worlds: Worlds, arenas: Arenas) -> None:
    """Learn until args.steps env steps are done, and now and then write down what there is."""
    from torch.utils.tensorboard import SummaryWriter

    per_update = args.num_envs * recipe.num_steps
    num_updates = math.ceil(args.steps / per_update)
    marks = checkpoint_marks(num_updates, args.checkpoints)
    done = run.num_done * per_update
    # An episode of a vector environment begins with a step that only resets it.
    episodes = Episodes(args.num_envs, run.recent, COUNTERPARTS[args.task].held_reward * args.limit, args.limit + 1)
    board = SummaryWriter(args.out / "tb", purge_step=done or None)
    updates = range(run.num_done, num_updates)
    with Progress("env steps", total=num_updates * per_update, done=done) as progress:
        learning = learn(worlds, run.policy, run.optimizer, recipe, updates=updates, reopen_at=marks, seed=args.seed)
        for update in learning:
            episodes.add(update.rollout, is_opening=update.is_opening)
            run.num_done, run.recent = update.number + 1, list(episodes.recent)
            num_steps = run.num_done * per_update
            for name, value in {**update.losses, **episodes.means(), "lr": update.lr}.items():
                board.add_scalar(name, value, num_steps)
            progress.update(per_update)
            if run.num_done in marks:
                write_down(args, run, arenas, num_steps)
                means = ", ".join(f"{name} {value:.2f}" for name, value in episodes.means().items())
                print(f"step {num_steps}: {means or 'no episode has had time to end yet'}", flush=True)
    board.close()
    draw_curve(args.out, f"updates of {per_update} env steps")


def checkpoint_marks(num_updates: int, checkpoints: int) -> set[int]:
    """After how many updates to write a checkpoint: two thirds of them evenly over the run, the others at a half, a
    quarter, ... of the first of those. A policy learns most of what it ever does early, and whether a dream is a fair
    judge shows where policies differ."""
    num_even = max(math.ceil(2 * checkpoints / 3), 1)
    each = num_updates / num_even
    early = {round(each / 2**power) for power in range(1, checkpoints - num_even + 1)}
    return (early | {round(each * (index + 1)) for index in range(num_even)}) - {0}


def draw_curve(folder: Path, unit: str) -> None:
    """Success while learning over the whole run, as TensorBoard's files in `folder` tell it, to curve.png."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    told = EventAccumulator(str(folder / "tb"))
    told.Reload()
    if "success" in told.Tags()["scalars"]:
        success = np.array([point.value for point in told.Scalars("success")])
        save_plot(folder / "curve.png", {"success": success}, x=unit, y="of the last 100 episodes")


def write_down(args: argparse.Namespace, run: Run, arenas: Arenas, num_steps: int) -> None:
    """Keep the policy of this step, film it, and last save the checkpoint: who goes on from that has the others."""
    facts = {**run.identity, "trained_in": trained_in(args), "steps": num_steps}
    save_policy(run.policy, args.out / POLICY_FOLDER / f"step_{num_steps:09d}.safetensors", facts)
    save_policy(run.policy, args.out / POLICY_FILE, facts)
    film(args, run.policy, arenas, num_steps)
    run.save()


def film(args: argparse.Namespace, policy: PixelPolicy, arenas: Arenas, num_steps: int) -> None:
    """Two held-out episodes, played where the policy is trained, as an MP4."""
    where = trained_in(args)
    play = arenas.play_dream if where == "dream" else arenas.play_simulator
    save_films(args.out / "videos" / f"step_{num_steps:09d}.mp4", {where: play(policy, 2, num_filmed=2)})


class Episodes:
    """Returns and successes of the last 100 episodes while learning that had time to end.

    An episode counts when it could have lasted `limit` steps, whenever it ended: successes end early, so among those
    that have ended soon after all worlds were opened there are hardly any others. `full` is what an episode's return
    begins with: all that was subtracted from the rewards of one as long as can be.
    """

    def __init__(self, num_envs: int, recent: list[list[float]], full: float, limit: int) -> None:
        self.recent: deque[list[float]] = deque(recent, maxlen=100)
        self.full, self.limit = full, limit
        self._give_up(num_envs)

    def _give_up(self, num_envs: int) -> None:
        self.totals, self.begun, self.now = np.full(num_envs, self.full), np.zeros(num_envs, int), 0
        self.waiting: list[tuple[int, int, list[float]]] = []

    def add(self, rollout: Rollout, *, is_opening: bool) -> None:
        """Count the steps of a rollout; `is_opening`: the episodes before it were given up."""
        if is_opening:
            self._give_up(len(self.totals))
        rewards, ended, success = (
            part.cpu().numpy() for part in (rollout.rewards * rollout.counts, rollout.ended, rollout.success)
        )
        for step in range(len(rewards)):
            self.totals += rewards[step]
            self.now += 1
            for row in np.flatnonzero(ended[step]).tolist():
                result = [float(self.totals[row]), float(success[step, row])]
                self.waiting.append((int(self.begun[row]), row, result))
            self.totals[ended[step]], self.begun[ended[step]] = self.full, self.now
            had_time = [episode for episode in self.waiting if episode[0] + self.limit <= self.now]
            self.recent.extend(result for _, _, result in sorted(had_time))
            self.waiting = [episode for episode in self.waiting if episode[0] + self.limit > self.now]

    def means(self) -> dict[str, float]:
        """Mean return and success; nothing before an episode counts."""
        if not self.recent:
            return {}
        return dict(zip(("return", "success"), np.mean(self.recent, axis=0).tolist(), strict=True))


class Run:
    """What a checkpoint holds: the policy, its optimiser, how many updates are done, the recent episodes."""

    def __init__(self, args: argparse.Namespace, recipe: Recipe, config: PolicyConfig) -> None:
        self.path = args.out / "checkpoint.safetensors"
        torch.manual_seed(args.seed)
        self.policy = PixelPolicy(config).to(args.device)
        self.policy.widen(recipe.std)
        self.optimizer = torch.optim.Adam(self.policy.parameters(), lr=recipe.lr, eps=1e-5)
        self.num_done = 0
        self.recent: list[list[float]] = []
        known = {name: getattr(args, name) for name in IDENTITY} | {"recipe": asdict(recipe), "policy": asdict(config)}
        self.identity = json.loads(json.dumps(known))  # tuples become lists, as they do in the file

    def save(self) -> None:
        """Write the checkpoint in the place of the last one, all of it or nothing."""
        tensors = {f"policy.{name}": value for name, value in self.policy.state_dict().items()}
        tensors |= {f"adam.{name}": value for name, value in optimizer_tensors([self.optimizer]).items()}
        header = {"identity": self.identity, "num_done": self.num_done, "recent": self.recent}
        save_tensors(self.path, {name: value.detach().cpu().contiguous() for name, value in tensors.items()}, header)

    def resume(self) -> None:
        """Go on from the checkpoint, if there is one. Raises ValueError for a damaged one, and for another run's."""
        if not self.path.exists():
            return
        tensors, header = load_tensors(self.path)
        usual = COUNTERPARTS[self.identity["task"]].usual_hand_actions
        before = {"temperature": 1.0, "hand_actions": usual} | header["identity"]  # older checkpoints know of neither
        if before != self.identity:
            changed = sorted(name for name, value in self.identity.items() if before.get(name) != value)
            raise ValueError(f"{self.path} is of a run with another {', '.join(changed)}; give another --out")
        parts: dict[str, dict[str, Tensor]] = {"policy": {}, "adam": {}}
        for name, tensor in tensors.items():
            part, _, rest = name.partition(".")
            parts[part][rest] = tensor
        self.policy.load_state_dict(parts["policy"])
        load_optimizer_tensors([self.optimizer], parts["adam"])
        self.num_done, self.recent = header["num_done"], header["recent"]
