"""`worldscape eval transfer` and `exploits`: policies, in the dream and in the simulator from the same starts."""

from __future__ import annotations

import argparse
import time

from worldscape.evaluate.arenas import Arenas
from worldscape.evaluate.episodes import SOURCES
from worldscape.evaluate.judging import checked_model, finish, load_reader, name_files
from worldscape.evaluate.options import ENGINE_OPTIONS, engine_options
from worldscape.evaluate.report import find_commit

ARENA_OPTIONS = ("task", "limit", "first_seed", "batch", *ENGINE_OPTIONS)


def run_transfer(args: argparse.Namespace) -> None:
    """Policies trained in the dream and in the simulator, and random actions, scored in both from the same starts."""
    from worldscape.evaluate import transfer

    begin = time.perf_counter()
    checked_model(args)
    folders = {"dream": args.dream_run, "simulator": args.simulator_run}
    runs = {name: transfer.load_run(folder, name, args.task) for name, folder in folders.items() if folder is not None}
    transfer.check_runs(runs)
    options = {name: vars(args)[name] for name in ARENA_OPTIONS}
    hand_actions = runs["dream"].hand_actions
    with Arenas(args.weights, num_episodes=args.episodes, hand_actions=hand_actions, **options) as arenas:
        judged = transfer.judge_transfer(
            _kept_plays(args, arenas, hand_actions) if args.out else arenas,
            runs,
            checkpoint_episodes=args.checkpoint_episodes,
            num_filmed=args.filmed if args.out else 0,
        )
    if args.out:
        name_files([transfer.save_films(args.out / "transfer.mp4", judged.plays["dream"])])
    finish("transfer", args, begin, judged.metrics, judged.tables)


def _kept_plays(args: argparse.Namespace, arenas: Arenas, hand_actions: str | None):
    """The arenas, whose plays are kept in the folder `plays` of --out."""
    from worldscape.checkpoint import load_world, weights_id
    from worldscape.evaluate.kept_plays import KeptArenas

    shared = {"task": args.task, "limit": arenas.limit, "first_seed": args.first_seed, "size": arenas.size}
    shared |= {} if hand_actions is None else {"hand_actions": hand_actions}
    dream = {
        **shared,
        **engine_options(args),
        "batch": args.batch,
        "weights": weights_id(load_world(args.weights)),
        "episodes": args.episodes,
    }
    return KeptArenas(arenas, args.out / "plays", {"simulator": shared, "dream": dream}, find_commit())


def run_exploits(args: argparse.Namespace) -> None:
    """Whether the simulator confirms what a policy is paid for in the dream, and what would have told."""
    from worldscape.checkpoint import load_world
    from worldscape.evaluate import exploits
    from worldscape.evaluate import inverse_dynamics as inverse
    from worldscape.policy import load_policy

    begin = time.perf_counter()
    size = checked_model(args).config.codec.size
    if args.task != "goal_object" and (args.reader or args.opinion):
        raise ValueError(f"--reader and --opinion judge walkers, not {args.task}; leave them out")
    policy, facts = (None, {}) if args.run is None else load_policy(args.run)
    policies = {} if policy is None else {"trained": policy}
    reader = args.reader and load_reader(args.reader, inverse.InverseDynamicsConfig(), size, SOURCES[0])
    opinions = [load_world(weights, args.device).heads.events for weights in args.opinion]
    options = {name: vars(args)[name] for name in ARENA_OPTIONS}
    options |= {"hand_actions": facts.get("hand_actions")}
    with Arenas(args.weights, num_episodes=args.episodes, **options) as arenas:
        judged = exploits.judge_exploits(arenas, {**policies, "random": None}, reader=reader, opinions=opinions)
    finish("exploits", args, begin, judged.metrics, judged.tables)
