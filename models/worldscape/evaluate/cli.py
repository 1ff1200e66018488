"""`worldscape eval` and its evaluations: tables, pictures, and one JSON line at the end of each."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from worldscape.data.episode import HELD_OUT_SEED
from worldscape.evaluate.arenas import Arenas
from worldscape.evaluate.counterparts import COUNTERPARTS
from worldscape.evaluate.episodes import SOURCES, EpisodeBatch, Judge
from worldscape.evaluate.options import add_evaluation, read_counts, read_names
from worldscape.evaluate.report import Table, find_commit, print_report, report_on

if TYPE_CHECKING:
    from worldscape.data.rollout import Policy
    from worldscape.engine import WorldEngine
    from worldscape.evaluate.inverse_dynamics import InverseDynamicsConfig
    from worldscape.world import WorldModel

WALKED = ("rooms",)
READ_STEPS = 64  # of the episodes from which an ablation reads actions back, in segments of a quarter
ARENA_OPTIONS = ("task", "limit", "first_seed", "batch", "device", "steps_per_frame", "sampler", "precision")
OpenEngine = Callable[[int, str, str], "WorldEngine"]
"""Number of slots, device, precision -> engine."""


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Add `eval` with its evaluations to the command line."""
    parser = subparsers.add_parser("eval", help="measure a world against its simulator", description=__doc__)
    evaluations = parser.add_subparsers(dest="evaluation", metavar="EVALUATION", required=True)
    fidelity = add_evaluation(evaluations, "fidelity", run_fidelity, episodes=64, policy="explore")
    fidelity.add_argument("--horizons", type=read_counts, default=(1, 4, 16, 64), help="comma-separated steps")
    fidelity.add_argument("--context", type=int, default=1, help="real frames that open each dream")
    actions = add_evaluation(evaluations, "actions", run_actions, episodes=32, policy="restless")
    actions.add_argument("--steps", type=int, default=64, help="steps of each episode")
    actions.add_argument("--segment", type=int, default=16, help="steps after which a dream is opened anew")
    actions.add_argument("--updates", type=int, help="training updates of the reader of actions; default: its own")
    actions.add_argument("--training-episodes", type=int, help="episodes that it learns from; default: its own")
    drift = add_evaluation(evaluations, "drift", run_drift, episodes=8, policy="explore")
    drift.add_argument("--steps", type=int, default=1000, help="length of each dream")
    drift.add_argument("--window", type=int, default=100, help="steps that one row of statistics covers")
    ablation = add_evaluation(evaluations, "ablation", run_ablation, episodes=32, policy="explore", sources=WALKED)
    ablation.add_argument(
        "--row", action="append", required=True, help="NAME=WEIGHTS[,steps_per_frame=N][,sampler=S][,policy=P]"
    )
    ablation.add_argument("--horizons", type=read_counts, default=(4, 16, 64), help="comma-separated steps")
    ablation.add_argument(
        "--reader", type=Path, help="inverse_dynamics.safetensors, made where absent; none: no actions"
    )
    ablation.add_argument("--memory-episodes", type=int, default=0, help="walks around and back; 0: no memory")
    ablation.add_argument("--drift-steps", type=int, default=0, help="length of the long dreams; 0: no drift")
    ablation.add_argument("--drift-episodes", type=int, default=4, help="number of long dreams")
    geometry = add_evaluation(evaluations, "geometry", run_geometry, episodes=32, policy="explore")
    geometry.add_argument("--horizons", type=read_counts, default=(1, 4, 16, 64), help="comma-separated steps")
    geometry.add_argument("--gaps", type=read_counts, default=(1, 4, 16), help="steps between frames that are compared")
    geometry.add_argument("--context", type=int, default=1, help="real frames that each dream begins with")
    hands = add_evaluation(evaluations, "hands", run_hands, episodes=64, policy="mixed", sources=("tabletop",))
    hands.add_argument("--horizons", type=read_counts, default=(4, 16, 32), help="comma-separated steps")
    hands.add_argument("--untold", action="store_true", help="look for object and target in the first picture")
    hands.add_argument("--retrain", action="store_true", help="train a hand reader; do not use the shipped one")
    hands.add_argument("--updates", type=int, help="training updates of the hand reader; default: its own")
    hands.add_argument("--training-episodes", type=int, help="episodes that it learns from; default: its own")
    memory = add_evaluation(evaluations, "memory", run_memory, episodes=16, policy=None, sources=WALKED)
    memory.add_argument("--policies", type=read_names, default=("maco", "local", "sink+local", "full"))
    memory.add_argument("--paths", type=read_names, default=("spin", "turn_and_back", "walk_and_back", "loop"))
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

    variants = [ablation.read_variant(text) for text in args.row]
    reports = [(variant, _judge_variant(variant, args)) for variant in variants]
    if args.out:
        _name_files(ablation.save_ablation(args.out, f"worldscape {' '.join(sys.argv[1:])}", reports))
    print(ablation.tabulate_variants(reports).to_text(), end="\n\n")
    print("\n".join(report.to_json() for _, report in reports))


def _judge_variant(variant, args: argparse.Namespace):
    """One row of the ablation: the report on all that the options ask for."""
    from worldscape.evaluate import ablation, actions, drift, fidelity, memory
    from worldscape.evaluate import inverse_dynamics as inverse
    from worldscape.evaluate.baselines import warp_start

    begin = time.perf_counter()
    args = argparse.Namespace(**{**vars(args), "weights": variant.weights})
    config = fidelity.FidelityConfig(horizons=args.horizons)
    engine, episodes = _prepare(args, config.num_steps, variant.open_engine)
    found = dict(fidelity.judge_fidelity(engine, episodes, warp_start, config).metrics)
    if args.reader:
        args.policy = "restless"
        engine, walked = _prepare(args, READ_STEPS, variant.open_engine)
        reader = _load_reader(args.reader, inverse.InverseDynamicsConfig(), walked.frames.shape[2], args.source)
        found |= actions.judge_actions(engine, walked.segments(READ_STEPS // 4), reader).metrics
    if args.memory_episodes:
        path = memory.PATHS["spin"]
        args.policy, args.episodes = memory.follow(path), args.memory_episodes
        engine, walked = _prepare(args, len(path), variant.open_engine)
        judged = memory.judge_revisits(engine, walked, engine.config.memory)
        found |= {f"memory_{name}": value for name, value in judged.items()}
    if args.drift_steps:
        args.policy, args.episodes = "explore", args.drift_episodes
        engine, long = _prepare(args, args.drift_steps, variant.open_engine)
        judged = drift.judge_drift(engine, long, window=min(100, args.drift_steps)).metrics
        found |= {f"drift_{name}": value for name, value in judged.items()}
    found |= ablation.measure_speed(variant.open_engine(1, args.device, args.precision), episodes)
    return report_on("ablation", variant.weights, args.device, time.perf_counter() - begin, found)


def run_fidelity(args: argparse.Namespace) -> None:
    """Dream against simulator at several horizons, beside copy-the-start and warp-only."""
    from worldscape.evaluate import fidelity
    from worldscape.evaluate.baselines import warp_start

    begin = time.perf_counter()
    config = fidelity.FidelityConfig(horizons=args.horizons, context=args.context)
    engine, episodes = _prepare(args, config.num_steps)
    judged = fidelity.judge_fidelity(engine, episodes, warp_start, config)
    if args.out:
        _name_files(fidelity.save_pictures(args.out, judged.dream, episodes, warp_start, config))
    _finish(_name_of("fidelity", args), args, begin, judged.metrics, judged.tables)


def run_actions(args: argparse.Namespace) -> None:
    """Actions read back from dreamed frames by a network trained on simulator frames."""
    if args.source == "tabletop":
        return _run_hand_actions(args)
    from worldscape.evaluate import actions
    from worldscape.evaluate import inverse_dynamics as inverse

    begin = time.perf_counter()
    _check_segment(args)
    config = inverse.InverseDynamicsConfig(**_asked_of_judge(args))
    engine, episodes = _prepare(args, args.steps)
    path = args.out and args.out / "inverse_dynamics.safetensors"
    reader = _load_reader(path, config, episodes.frames.shape[2], args.source)
    segments = episodes.segments(args.segment)
    judged = actions.judge_actions(engine, segments, reader)
    if args.out:
        _name_files(actions.save_pictures(args.out, engine, segments))
    _finish(_name_of("actions", args), args, begin, judged.metrics, judged.tables)


def _run_hand_actions(args: argparse.Namespace) -> None:
    """The same for hands: their motion in the picture."""
    from worldscape.evaluate import hands

    begin = time.perf_counter()
    _check_segment(args)
    engine, episodes = _prepare(args, args.steps)
    judged = hands.judge_hand_motion(engine, episodes.segments(args.segment), _load_hand_reader(args, episodes))
    _finish(_name_of("actions", args), args, begin, judged.metrics, judged.tables)


def run_hands(args: argparse.Namespace) -> None:
    """Dreamed hands against the simulator's: where they are, what the object does, what it is worth."""
    from worldscape.evaluate import hands

    begin = time.perf_counter()
    config = hands.HandsConfig(horizons=args.horizons, tells_places=not args.untold)
    engine, episodes = _prepare(args, config.num_steps)
    judged = hands.judge_hands(engine, episodes, _load_hand_reader(args, episodes), config)
    if args.out:
        _name_files(hands.save_pictures(args.out, judged.dream, episodes))
    _finish("hands", args, begin, judged.metrics, judged.tables)


def _load_hand_reader(args: argparse.Namespace, episodes: EpisodeBatch):
    """The network that finds hands: the shipped one, or, where other training was asked for, the one kept in --out or a
    new one."""
    from worldscape.evaluate.hand_lessons import load_or_train_reader
    from worldscape.evaluate.hand_reader import HandReaderConfig

    config = HandReaderConfig(**_asked_of_judge(args))
    judge = Judge(args.source, "mixed", episodes.frames.shape[2])

    def walk() -> EpisodeBatch:
        return judge.episodes(config.num_episodes, config.num_steps, first_seed=config.first_seed)

    path = args.out and args.out / "hand_reader.safetensors"
    return load_or_train_reader(path, config, walk, retrain=getattr(args, "retrain", False))


def _asked_of_judge(args: argparse.Namespace) -> dict[str, int]:
    """Settings of a judge's training that the command line names."""
    asked = {"updates": args.updates, "num_episodes": args.training_episodes}
    return {name: value for name, value in asked.items() if value is not None}


def _name_of(name: str, args: argparse.Namespace) -> str:
    """A result's name, with the simulator that judged where it is not the first one."""
    return name if args.source == SOURCES[0] else f"{name}_{args.source}"


def _check_segment(args: argparse.Namespace) -> None:
    if not 1 <= args.segment <= args.steps:
        raise ValueError(f"--segment {args.segment} must lie between 1 and --steps {args.steps}")


def _load_reader(path: Path | None, config: InverseDynamicsConfig, size: int, source: str):
    """The network that reads actions back, trained on walks through the simulator unless it lies at `path`."""
    from worldscape.evaluate import inverse_dynamics as inverse

    judge = Judge(source, "restless", size)

    def walk() -> EpisodeBatch:
        return judge.episodes(config.num_episodes, config.num_steps, first_seed=config.first_seed)

    return inverse.load_or_train(path, config, walk)


def run_drift(args: argparse.Namespace) -> None:
    """Sharpness, colour and repeat statistics of long dreams beside the simulator's."""
    from worldscape.evaluate import drift

    begin = time.perf_counter()
    drift.check_window(args.window, args.steps)
    engine, episodes = _prepare(args, args.steps)
    judged = drift.judge_drift(engine, episodes, window=args.window)
    if args.out:
        _name_files(drift.save_pictures(args.out, judged.dream, episodes))
    _finish(_name_of("drift", args), args, begin, judged.metrics, judged.tables)


def run_geometry(args: argparse.Namespace) -> None:
    """Depth, consistency between views, and new views from Gaussians, along the simulator's own motion."""
    from worldscape.checkpoint import load_aggregator
    from worldscape.evaluate import geometry

    begin = time.perf_counter()
    config = geometry.GeometryConfig(horizons=args.horizons, gaps=args.gaps, context=args.context)
    engine, episodes = _prepare(args, config.num_walked)
    make = geometry.choose_maker(engine.model, load_aggregator(args.weights, args.device))
    judged = geometry.judge_geometry(engine, episodes, make, config)
    if args.out:
        _name_files(geometry.save_pictures(args.out, judged.dream, episodes, make, config))
    _finish("geometry", args, begin, judged.metrics, judged.tables)


def run_memory(args: argparse.Namespace) -> None:
    """Places left and seen again, in the dream and in the simulator, under several memory policies."""
    from worldscape.evaluate import memory

    begin = time.perf_counter()
    unknown = [path for path in args.paths if path not in memory.PATHS]
    if unknown:
        raise ValueError(f"--paths {','.join(unknown)} unknown; choose from {', '.join(memory.PATHS)}")
    model = _checked_model(args)
    paths = {path: memory.PATHS[path] for path in args.paths}
    walks = {path: _walk(args, model, memory.follow(actions), len(actions)) for path, actions in paths.items()}
    judged = memory.judge_memory(
        model,
        walks,
        args.policies,
        batch=args.batch,
        device=args.device,
        steps_per_frame=args.steps_per_frame,
        sampler=args.sampler,
        precision=args.precision,
    )
    if args.out:
        _name_files(memory.save_pictures(args.out, walks, judged.dreams))
    _finish("memory", args, begin, judged.metrics, judged.tables)


def run_retrieval(args: argparse.Namespace) -> None:
    """What the frames that memory chooses truly show of the next view, beside an oracle's and simpler choices."""
    from worldscape.evaluate import retrieval

    begin = time.perf_counter()
    model = _checked_model(args)
    episodes = _walk(args, model, args.policy, args.steps)
    judged = retrieval.judge_retrieval(model.config.memory, episodes, every=args.every)
    _finish("retrieval", args, begin, judged.metrics, judged.tables)


def run_trust(args: argparse.Namespace) -> None:
    """Whether drift, and what else memory says of a dreamed frame, goes with its error against the simulator."""
    from worldscape.evaluate import trust

    begin = time.perf_counter()
    engine, episodes = _prepare(args, args.steps)
    judged = trust.judge_trust(engine, episodes)
    _finish("trust", args, begin, judged.metrics, judged.tables)


def run_transfer(args: argparse.Namespace) -> None:
    """Policies trained in the dream and in the simulator, and random actions, scored in both from the same starts."""
    from worldscape.evaluate import transfer

    begin = time.perf_counter()
    _checked_model(args)
    folders = {"dream": args.dream_run, "simulator": args.simulator_run}
    runs = {name: transfer.load_run(folder, name, args.task) for name, folder in folders.items() if folder is not None}
    transfer.check_runs(runs)
    options = {name: vars(args)[name] for name in ARENA_OPTIONS}
    with Arenas(args.weights, num_episodes=args.episodes, **options) as arenas:
        judged = transfer.judge_transfer(
            _kept_plays(args, arenas) if args.out else arenas,
            runs,
            checkpoint_episodes=args.checkpoint_episodes,
            num_filmed=args.filmed if args.out else 0,
        )
    if args.out:
        _name_files([transfer.save_films(args.out / "transfer.mp4", judged.plays["dream"])])
    _finish("transfer", args, begin, judged.metrics, judged.tables)


def _kept_plays(args: argparse.Namespace, arenas: Arenas):
    """The arenas, whose plays are kept in the folder `plays` of --out."""
    from worldscape.checkpoint import load_world, weights_id
    from worldscape.evaluate.kept_plays import KeptArenas

    shared = {"task": args.task, "limit": arenas.limit, "first_seed": args.first_seed, "size": arenas.size}
    engine = {name: vars(args)[name] for name in ("batch", "device", "steps_per_frame", "sampler", "precision")}
    dream = {**shared, **engine, "weights": weights_id(load_world(args.weights)), "episodes": args.episodes}
    return KeptArenas(arenas, args.out / "plays", {"simulator": shared, "dream": dream}, find_commit())


def run_exploits(args: argparse.Namespace) -> None:
    """Whether the simulator confirms what a policy is paid for in the dream, and what would have told."""
    from worldscape.checkpoint import load_world
    from worldscape.evaluate import exploits
    from worldscape.evaluate import inverse_dynamics as inverse
    from worldscape.policy import load_policy

    begin = time.perf_counter()
    size = _checked_model(args).config.codec.size
    if args.task != "goal_object" and (args.reader or args.opinion):
        raise ValueError(f"--reader and --opinion judge walkers, not {args.task}; leave them out")
    policies = {} if args.run is None else {"trained": load_policy(args.run)[0]}
    reader = args.reader and _load_reader(args.reader, inverse.InverseDynamicsConfig(), size, SOURCES[0])
    opinions = [load_world(weights, args.device).heads.events for weights in args.opinion]
    options = {name: vars(args)[name] for name in ARENA_OPTIONS}
    with Arenas(args.weights, num_episodes=args.episodes, **options) as arenas:
        judged = exploits.judge_exploits(arenas, {**policies, "random": None}, reader=reader, opinions=opinions)
    _finish("exploits", args, begin, judged.metrics, judged.tables)


def _prepare(args: argparse.Namespace, num_steps: int, open_engine: OpenEngine | None = None):
    """The engine and the judged episodes that the options ask for; open_engine(slots, device) makes another engine."""
    from worldscape.engines import open_engine as make_engine

    model = _checked_model(args)
    num_slots = min(args.batch, args.episodes)
    if open_engine is None:
        engine = make_engine(
            model,
            num_slots,
            sampler=args.sampler,
            device=args.device,
            steps_per_frame=args.steps_per_frame,
            precision=args.precision,
            hands="right" if args.source == "tabletop" else None,
        )
    else:
        engine = open_engine(num_slots, args.device, args.precision)
    return engine, _walk(args, model, args.policy, num_steps)


def _walk(args: argparse.Namespace, model: WorldModel, policy: str | Policy, num_steps: int) -> EpisodeBatch:
    """The episodes that the options ask for, walked by `policy` through the simulator in the model's picture size."""
    judge = Judge(args.source, policy, model.config.codec.size)
    return judge.episodes(args.episodes, num_steps, first_seed=args.first_seed)


def _checked_model(args: argparse.Namespace) -> WorldModel:
    """The world model, after the options that all evaluations share were checked."""
    from worldscape.checkpoint import load_world

    if args.batch < 1 or args.episodes < 1:
        raise ValueError(f"--batch {args.batch} and --episodes {args.episodes} must be at least 1")
    if args.first_seed < HELD_OUT_SEED:
        raise ValueError(f"--first-seed {args.first_seed} may be a training layout; give {HELD_OUT_SEED} or more")
    return load_world(args.weights, args.device)


def _finish(name: str, args: argparse.Namespace, begin: float, metrics: dict[str, float], tables: list[Table]) -> None:
    print_report(report_on(name, args.weights, args.device, time.perf_counter() - begin, metrics), tables)


def _name_files(paths: list[Path]) -> None:
    print("\n".join(f"wrote {path}" for path in paths), end="\n\n")
