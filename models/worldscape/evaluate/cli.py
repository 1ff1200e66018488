"""`worldscape eval` and its evaluations: tables, pictures, and one JSON line at the end of each."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from worldscape.evaluate.cli_policies import run_exploits, run_transfer
from worldscape.evaluate.counterparts import COUNTERPARTS
from worldscape.evaluate.episodes import EpisodeBatch, Judge
from worldscape.evaluate.judging import (
    asked_of_judge,
    check_segment,
    checked_model,
    finish,
    load_reader,
    name_files,
    name_of,
    prepare,
    walk,
)
from worldscape.evaluate.options import add_evaluation, engine_options, read_counts, read_names
from worldscape.evaluate.report import Report, report_on

if TYPE_CHECKING:
    from worldscape.evaluate.ablation import Variant

WALKED = ("rooms",)
READ_STEPS = 64  # of the episodes from which an ablation reads actions back, in segments of a quarter


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Add `eval` with its evaluations to the command line."""
    parser = subparsers.add_parser("eval", help="measure a world against its simulator", description=__doc__)
    evaluations = parser.add_subparsers(dest="evaluation", metavar="EVALUATION", required=True)
    fidelity = add_evaluation(evaluations, "fidelity", run_fidelity, episodes=64, policy="explore")
    fidelity.add_argument("--horizons", type=read_counts, default=(1, 4, 16, 64), help="comma-separated steps")
    fidelity.add_argument("--context", type=int, default=1, help="real frames that open each dream")
    fidelity.add_argument(
        "--data",
        help="a recorded dataset that judges instead of --source; record it with other seeds than were trained on",
    )
    actions = add_evaluation(evaluations, "actions", run_actions, episodes=32, policy="restless")
    actions.add_argument("--steps", type=int, default=64, help="steps of each episode")
    actions.add_argument("--segment", type=int, default=16, help="steps after which a dream is opened anew")
    actions.add_argument("--updates", type=int, help="training updates of the reader of actions; default: its own")
    actions.add_argument("--training-episodes", type=int, help="episodes that it learns from; default: its own")
    drift = add_evaluation(evaluations, "drift", run_drift, episodes=32, policy="explore")
    drift.add_argument("--steps", type=int, default=1000, help="length of each dream")
    drift.add_argument("--window", type=int, default=100, help="steps that one row of statistics covers")
    ablation = add_evaluation(evaluations, "ablation", run_ablation, episodes=32, policy="explore", sources=WALKED)
    ablation.add_argument(
        "--row",
        action="append",
        required=True,
        help="NAME=WEIGHTS[,steps_per_frame=N][,sampler=S][,policy=P][,temperature=T]",
    )
    ablation.add_argument("--horizons", type=read_counts, default=(4, 16, 64), help="comma-separated steps")
    ablation.add_argument(
        "--reader", type=Path, help="inverse_dynamics.safetensors, made where absent; none: no actions"
    )
    ablation.add_argument("--memory-episodes", type=int, default=0, help="walks around and back; 0: no memory")
    ablation.add_argument("--drift-steps", type=int, default=0, help="length of the long dreams; 0: no drift")
    ablation.add_argument("--drift-episodes", type=int, default=32, help="number of long dreams")
    geometry = add_evaluation(evaluations, "geometry", run_geometry, episodes=32, policy="explore")
    geometry.add_argument("--horizons", type=read_counts, default=(1, 4, 16, 64), help="comma-separated steps")
    geometry.add_argument("--gaps", type=read_counts, default=(1, 4, 16), help="steps between frames that are compared")
    geometry.add_argument("--context", type=int, default=1, help="real frames that each dream begins with")
    told = "true latents for the generator's: what codec and memory alone would make of one that is always right"
    geometry.add_argument("--oracle", action="store_true", help=told)
    hands = add_evaluation(evaluations, "hands", run_hands, episodes=64, policy="mixed", sources=("tabletop",))
    hands.add_argument("--horizons", type=read_counts, default=(4, 16, 32), help="comma-separated steps")
    hands.add_argument("--untold", action="store_true", help="look for object and target in the first picture")
    hands.add_argument("--retrain", action="store_true", help="train a hand reader; do not use the shipped one")
    hands.add_argument("--updates", type=int, help="training updates of the hand reader; default: its own")
    hands.add_argument("--training-episodes", type=int, help="episodes that it learns from; default: its own")
    memory = add_evaluation(evaluations, "memory", run_memory, episodes=16, policy=None, sources=WALKED)
    policies, paths = ("maco", "local", "sink+local", "full"), ("spin", "turn_and_back", "walk_and_back", "loop")
    told = f"comma-separated ways to remember that are compared (default {','.join(policies)})"
    memory.add_argument("--policies", type=read_names, default=policies, help=told)
    told = f"comma-separated walks that leave a place and come back (default {','.join(paths)})"
    memory.add_argument("--paths", type=read_names, default=paths, help=told)
    retrieval = add_evaluation(evaluations, "retrieval", run_retrieval, episodes=16, policy="explore", sources=WALKED)
    retrieval.add_argument("--steps", type=int, default=100, help="steps of each recorded walk")
    retrieval.add_argument("--every", type=int, default=4, help="steps between views that are scored")
    trust = add_evaluation(evaluations, "trust", run_trust, episodes=32, policy="explore", sources=WALKED)
    trust.add_argument("--steps", type=int, default=128, help="length of each dream")
    transfer = add_evaluation(evaluations, "transfer", run_transfer, episodes=200, policy=None, sources=())
    transfer.add_argument("--task", choices=COUNTERPARTS, default="goal_object", help="what the simulator scores")
    transfer.add_argument("--dream-run", type=Path, required=True, help="folder of a policy trained in the dream")
    transfer.add_argument("--simulator-run", type=Path, help="folder of one trained as long in the simulator")
    transfer.add_argument("--limit", type=int, help="steps after which an episode is truncated; default: the task's")
    transfer.add_argument("--checkpoint-episodes", type=int, default=50, help="episodes that score each checkpoint")
    transfer.add_argument("--filmed", type=int, default=8, help="episodes in the film that --out asks for")
    exploits = add_evaluation(evaluations, "exploits", run_exploits, episodes=100, policy=None, sources=())
    exploits.add_argument("--task", choices=COUNTERPARTS, default="goal_object", help="what is paid for")
    exploits.add_argument("--run", type=Path, help="folder of a policy; without it only random actions are taken")
    exploits.add_argument("--limit", type=int, help="steps after which an episode is truncated; default: the task's")
    exploits.add_argument("--reader", type=Path, help="inverse_dynamics.safetensors, as of `eval actions --out`")
    exploits.add_argument("--opinion", action="append", default=[], help="weights whose reward head is asked as well")


def run_ablation(args: argparse.Namespace) -> None:
    """Several weights side by side on the same layouts: fidelity, actions, memory, drift and speed in one table."""
    from worldscape.evaluate import ablation

    for name, default in (("steps_per_frame", None), ("sampler", "blockwise"), ("temperature", 1.0)):
        if (told := getattr(args, name)) != default:
            option = f"--{name.replace('_', '-')} {told}"
            raise ValueError(f"{option} is each row's own in an ablation: --row NAME=WEIGHTS,{name}={told}")
    variants = [ablation.read_variant(text) for text in args.row]
    kept: dict[tuple, EpisodeBatch] = {}
    firsts: dict[tuple[str, int], Any] = {}
    reports = [(variant, _judge_variant(variant, args, kept, firsts)) for variant in variants]
    if args.out:
        name_files(ablation.save_ablation(args.out, f"worldscape {' '.join(sys.argv[1:])}", reports))
    tables = [ablation.tabulate_variants(reports), ablation.tabulate_gains(reports)]
    print(*[table.to_text() for table in tables if table.rows], sep="\n\n", end="\n\n")
    print("\n".join(report.to_json() for _, report in reports))


def _judge_variant(
    variant: Variant, args: argparse.Namespace, kept: dict[tuple, EpisodeBatch], firsts: dict[tuple[str, int], Any]
) -> Report:
    """One row of the ablation: the report on all that the options ask for. kept: the walks of rows before; firsts: by
    kind and size of picture what the first such row showed, which later ones are compared with."""
    from worldscape.evaluate import ablation, actions, drift, fidelity, memory
    from worldscape.evaluate import inverse_dynamics as inverse
    from worldscape.evaluate.baselines import warp_start

    begin = time.perf_counter()
    args = argparse.Namespace(**{**vars(args), "weights": variant.weights})
    config = fidelity.FidelityConfig(horizons=args.horizons)
    engine, episodes = prepare(args, config.num_steps, variant.open_engine, kept)
    size = engine.config.codec.size
    near = fidelity.judge_fidelity(engine, episodes, warp_start, config)
    found = near.metrics | fidelity.compare_psnr(firsts.setdefault(("psnr", size), near.psnr), near.psnr)
    if args.reader:
        args.policy = "restless"
        engine, walked = prepare(args, READ_STEPS, variant.open_engine, kept)
        reader = load_reader(args.reader, inverse.InverseDynamicsConfig(), walked.frames.shape[2], args.source)
        found |= actions.judge_actions(engine, walked.segments(READ_STEPS // 4), reader).metrics
    if args.memory_episodes:
        path = memory.PATHS["spin"]
        args.policy, args.episodes = memory.follow(path), args.memory_episodes
        engine, walked = prepare(args, len(path), variant.open_engine, kept)
        judged = memory.judge_revisits(engine, walked, engine.config.memory)
        found |= {f"memory_{name}": value for name, value in judged.items()}
    if args.drift_steps:
        args.policy, args.episodes = "explore", args.drift_episodes
        engine, long = prepare(args, args.drift_steps, variant.open_engine, kept)
        judged, _, _, windows = drift.judge_drift(engine, long, window=min(100, args.drift_steps))
        gains = drift.compare_dreams(firsts.setdefault(("drift", size), windows), windows)
        found |= {f"drift_{name}": value for name, value in (judged | gains).items()}
    found |= ablation.measure_speed(variant.open_engine(1, args.device, args.precision), episodes)
    return report_on("ablation", variant.weights, args.device, time.perf_counter() - begin, found)


def run_fidelity(args: argparse.Namespace) -> None:
    """Dream against simulator at several horizons, beside copy-the-start and warp-only."""
    from worldscape.evaluate import fidelity
    from worldscape.evaluate.baselines import warp_start

    begin = time.perf_counter()
    config = fidelity.FidelityConfig(horizons=args.horizons, context=args.context)
    engine, episodes = prepare(args, config.num_steps)
    judged = fidelity.judge_fidelity(engine, episodes, warp_start, config)
    if args.out:
        name_files(fidelity.save_pictures(args.out, judged.dream, episodes, warp_start, config))
    finish(name_of("fidelity", args), args, begin, judged.metrics, judged.tables)


def run_actions(args: argparse.Namespace) -> None:
    """Actions read back from dreamed frames by a network trained on simulator frames."""
    if args.source == "tabletop":
        return _run_hand_actions(args)
    from worldscape.evaluate import actions
    from worldscape.evaluate import inverse_dynamics as inverse

    begin = time.perf_counter()
    check_segment(args)
    config = inverse.InverseDynamicsConfig(**asked_of_judge(args))
    engine, episodes = prepare(args, args.steps)
    path = args.out and args.out / "inverse_dynamics.safetensors"
    reader = load_reader(path, config, episodes.frames.shape[2], args.source)
    segments = episodes.segments(args.segment)
    judged = actions.judge_actions(engine, segments, reader)
    if args.out:
        name_files(actions.save_pictures(args.out, engine, segments))
    finish(name_of("actions", args), args, begin, judged.metrics, judged.tables)


def _run_hand_actions(args: argparse.Namespace) -> None:
    """The same for hands: their motion in the picture."""
    from worldscape.evaluate import hands

    begin = time.perf_counter()
    check_segment(args)
    engine, episodes = prepare(args, args.steps)
    judged = hands.judge_hand_motion(engine, episodes.segments(args.segment), _load_hand_reader(args, episodes))
    finish(name_of("actions", args), args, begin, judged.metrics, judged.tables)


def run_hands(args: argparse.Namespace) -> None:
    """Dreamed hands against the simulator's: where they are, what the object does, what it is worth."""
    from worldscape.evaluate import hands

    begin = time.perf_counter()
    config = hands.HandsConfig(horizons=args.horizons, tells_places=not args.untold)
    engine, episodes = prepare(args, config.num_steps)
    judged = hands.judge_hands(engine, episodes, _load_hand_reader(args, episodes), config)
    if args.out:
        name_files(hands.save_pictures(args.out, judged.dream, episodes))
    finish("hands", args, begin, judged.metrics, judged.tables)


def _load_hand_reader(args: argparse.Namespace, episodes: EpisodeBatch):
    """The network that finds hands: the shipped one, or, where other training was asked for, the one kept in --out or a
    new one."""
    from worldscape.evaluate.hand_lessons import load_or_train_reader
    from worldscape.evaluate.hand_reader import HandReaderConfig

    config = HandReaderConfig(**asked_of_judge(args))
    judge = Judge(args.source, "mixed", episodes.frames.shape[2])

    def lessons() -> EpisodeBatch:
        return judge.episodes(config.num_episodes, config.num_steps, first_seed=config.first_seed)

    path = args.out and args.out / "hand_reader.safetensors"
    return load_or_train_reader(path, config, lessons, retrain=getattr(args, "retrain", False))


def run_drift(args: argparse.Namespace) -> None:
    """Sharpness, colour and repeat statistics of long dreams beside the simulator's."""
    from worldscape.evaluate import drift

    begin = time.perf_counter()
    drift.check_window(args.window, args.steps)
    engine, episodes = prepare(args, args.steps)
    judged = drift.judge_drift(engine, episodes, window=args.window)
    if args.out:
        name_files(drift.save_pictures(args.out, judged.dream, episodes))
    finish(name_of("drift", args), args, begin, judged.metrics, judged.tables)


def run_geometry(args: argparse.Namespace) -> None:
    """Depth, consistency between views, and new views from Gaussians, along the simulator's own motion."""
    from worldscape.checkpoint import load_aggregator
    from worldscape.evaluate import geometry

    begin = time.perf_counter()
    config = geometry.GeometryConfig(horizons=args.horizons, gaps=args.gaps, context=args.context)
    engine, episodes = prepare(args, config.num_walked)
    make = geometry.choose_maker(engine.model, load_aggregator(args.weights, args.device))
    # An oracle's latents are no noise's, so dreams of it drawn again would say nothing.
    judged = geometry.judge_geometry(engine, episodes, make, config, redraws=not args.oracle)
    if args.out:
        name_files(geometry.save_pictures(args.out, judged.dream, episodes, make, config))
    finish("geometry_oracle" if args.oracle else "geometry", args, begin, judged.metrics, judged.tables)


def run_memory(args: argparse.Namespace) -> None:
    """Places left and seen again, in the dream and in the simulator, under several memory policies."""
    from worldscape.evaluate import memory

    begin = time.perf_counter()
    unknown = [path for path in args.paths if path not in memory.PATHS]
    if unknown:
        raise ValueError(f"--paths {','.join(unknown)} unknown; choose from {', '.join(memory.PATHS)}")
    model = checked_model(args)
    paths = {path: memory.PATHS[path] for path in args.paths}
    walks = {path: walk(args, model, memory.follow(actions), len(actions)) for path, actions in paths.items()}
    judged = memory.judge_memory(model, walks, args.policies, batch=args.batch, **engine_options(args))
    if args.out:
        name_files(memory.save_pictures(args.out, walks, judged.dreams))
    finish("memory", args, begin, judged.metrics, judged.tables)


def run_retrieval(args: argparse.Namespace) -> None:
    """What the frames that memory chooses truly show of the next view, beside an oracle's and simpler choices."""
    from worldscape.evaluate import retrieval

    begin = time.perf_counter()
    model = checked_model(args)
    episodes = walk(args, model, args.policy, args.steps)
    judged = retrieval.judge_retrieval(model.config.memory, episodes, every=args.every)
    finish("retrieval", args, begin, judged.metrics, judged.tables)


def run_trust(args: argparse.Namespace) -> None:
    """Whether drift, and what else memory says of a dreamed frame, goes with its error against the simulator."""
    from worldscape.evaluate import trust

    begin = time.perf_counter()
    engine, episodes = prepare(args, args.steps)
    judged = trust.judge_trust(engine, episodes)
    finish("trust", args, begin, judged.metrics, judged.tables)
