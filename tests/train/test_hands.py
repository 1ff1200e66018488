"""Training on recordings of rooms and of hands together, from the command line, at debug size."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from worldscape.checkpoint import load_world, read_provenance
from worldscape.cli import main
from worldscape.clip_engine import ClipEngine
from worldscape.codec import empty_anchor
from worldscape.conditioning.hands import HandScale, state_from_vector
from worldscape.conditioning.layers import NOBODY, OBJECT, owned_by
from worldscape.config import preset
from worldscape.data.clips import load_frames
from worldscape.data.tabletop_tasks import TASKS
from worldscape.dream import dream_walk
from worldscape.eight_bit import pack, unpack
from worldscape.engine import WorldEngine
from worldscape.hand_tasks import HAND_TASKS
from worldscape.train import decoder, heads, known, teacher, world
from worldscape.train.cli import NEEDS, copy_parts
from worldscape.train.config import override
from worldscape.train.hand_heads import hand_labels
from worldscape.train.pipeline import stage_of
from worldscape.train.prepare import NO_HAND
from worldscape.train.rollouts import RolloutPlan, _roll_all, follow, hands_at, hands_in, start_at, told_of_hands
from worldscape.train.teacher import adapt_model
from worldscape.world import WorldModel

QUIET = ["--set", "tensorboard=false", "--set", "device=cpu"]
QUIET_STAGE = {"steps": 2, "sample_every": 0, "tensorboard": False, "device": "cpu"}
STEPS = 20
STAGES = {"codec": None, "world": "codec", "ode": "world", "distill": "ode", "decoder": "distill", "heads": "decoder"}


@pytest.fixture(scope="module")
def datasets(tmp_path_factory):
    """Five episodes of rooms and five of the tabletop: the last eight of all are kept for pictures."""
    out = tmp_path_factory.mktemp("recorded")
    rooms = ["--env", "worldscape.data.rooms:WorldScape-Rooms-v0", "--out", str(out / "rooms")]
    tabletop = ["--env", "WorldScape-Tabletop-v0", "--out", str(out / "tabletop"), "--policy", "mixed", "--env-kwargs"]
    tabletop += ['{"task": "any", "goal_terminates": false}']
    for options in (rooms, tabletop):
        assert main(["record", "--episodes", "5", "--steps-per-episode", str(STEPS), *options]) == 0
    return [out / "rooms", out / "tabletop"]


@pytest.fixture(scope="module")
def runs(datasets, tmp_path_factory):
    """A folder in which every stage was trained for two steps on both datasets."""
    out = tmp_path_factory.mktemp("runs")
    for stage, init in STAGES.items():
        assert main([*command(stage, datasets, out / stage), *chain(out, init), "--steps", "2"]) == 0
    return out


def command(stage, datasets, out) -> list[str]:
    data = [text for dataset in datasets for text in ("--data", str(dataset))]
    return ["train", stage, "--preset", "debug", *data, "--out", str(out), *QUIET]


def chain(runs, init) -> list[str]:
    return ["--init", str(runs / init)] if init else []


@pytest.fixture(scope="module")
def store(datasets):
    return load_frames(datasets, 64, hands=True)


def test_the_full_plan_for_a_gpu_runs_through_from_nothing(datasets, tmp_path):
    """Every stage there is, in the order and with the changes of the plan, at debug size and for two steps each."""
    plan = json.loads((Path(__file__).parents[2] / "examples" / "train_nano_full_gpu.json").read_text())
    debug: dict[str, dict] = {name: dict(QUIET_STAGE) for name in plan["order"]}
    debug["distill"] |= {"window": 2, "alone_share": 1.0}
    debug["decoder-hands"] |= {"hands_only": True}
    debug["spatial"] |= {"alpha": 0, "beta": 0}  # Gaussians of untrained depth fill every tile: 10 s a step
    file, out = tmp_path / "plan.json", tmp_path / "run"
    file.write_text(json.dumps(plan | {"stages": debug}))
    data = [text for dataset in datasets for text in ("--data", str(dataset))]
    assert main(["train", "all", "--preset", "debug", *data, "--config", str(file), "--out", str(out)]) == 0
    known = read_provenance(out / "weights")
    assert {stage_of(name) for name in plan["order"]} == set(NEEDS) <= known.keys()
    last, walkers = load_world(out / "heads"), load_world(out / "decoder")
    assert last.codec.hand_decoder is not None and walkers.codec.hand_decoder is None
    for key, tensor in walkers.codec.decoder.state_dict().items():
        assert torch.equal(tensor, last.codec.decoder.state_dict()[key])
    in_8_bits = unpack(pack(last.state_dict()))
    for key, tensor in load_world(out / "weights").state_dict().items():
        assert torch.equal(tensor, in_8_bits[key])


@pytest.mark.parametrize("stage", STAGES)
def test_stages_train_on_both_and_go_on_where_they_stopped(runs, datasets, tmp_path, stage):
    assert read_provenance(runs / stage)[stage]["data"] == "rooms+tabletop"
    again = [*command(stage, datasets, tmp_path), *chain(runs, STAGES[stage]), "--steps", "2"]
    assert main([*again, "--minutes", "1e-9"]) == 0
    assert json.loads((tmp_path / "status.json").read_text())["status"] == "minutes"
    assert main(again) == 0
    whole, parts = load_world(runs / stage), load_world(tmp_path)
    assert all(torch.equal(tensor, parts.state_dict()[key]) for key, tensor in whole.state_dict().items())


def test_what_moves_is_no_place_to_be_rendered(store):
    """Hands and their object: neither looked at in views nor made Gaussians of. Rooms stand still."""
    frames = np.array([[0, 1], [STEPS + 1, STEPS + 2]])
    with_hands = 1 - int(store.hands.moves(frames)[0].any())  # datasets take turns
    still = known.find_still(store, frames)
    assert still[1 - with_hands].all() and 0.02 < float((~still[with_hands]).float().mean()) < 0.6
    row = frames[with_hands]
    owners = owned_by(*parts_of(store, row))
    assert torch.equal(still[with_hands], owners == NOBODY)


def parts_of(store, index):
    """Depth, poses, intrinsics and limbs of recorded frames [E]."""
    depth, pose, intrinsics = (
        torch.from_numpy(part[index]).float() for part in (store.depth, store.pose, store.intrinsics)
    )
    return depth, pose, intrinsics, store.hands.limbs(index, pose)


def test_the_generator_learns_to_read_hands_and_their_absence(runs, datasets):
    stage = world.build_stage(preset("debug"), world.DEFAULTS["debug"], datasets, runs / "codec")
    model = copy.deepcopy(load_world("debug")).requires_grad_(True)
    clips = stage.gather(np.array([0, 1]), np.array([[0, 1, 2, 3, 4]] * 2))
    clips["has_anchor"] = torch.ones(2, dtype=torch.bool)
    stage.loss(model, clips, torch.Generator().manual_seed(0))["loss"].backward()
    known = model.transformer
    assert all(part.grad is not None and part.grad.any() for part in (known.no_hand, *known.embed_hands.parameters()))


def test_episodes_are_mixed_and_keep_their_cameras(store):
    assert store.hands is not None and store.num_episodes == 10
    first = store.starts[:-1]
    assert store.hands.present[first].tolist() == [[False, False], [False, True]] * 5
    assert store.intrinsics[first, 0].tolist() == pytest.approx([0.596, 1.025] * 5, abs=0.001)
    assert (store.hands.task[first] >= 0).tolist() == [False, True] * 5


def test_clips_show_the_hands_of_their_frames(runs, datasets, store):
    stage = world.build_stage(preset("debug"), world.DEFAULTS["debug"], datasets, runs / "codec")
    index = stage.prepared.hand_index
    assert index is not None and (index[0::2] == NO_HAND).all() and (index[1::2] != NO_HAND).all()
    batch = stage.gather(np.array([0, 1]), np.array([[0, 1, 2, 3, 4]] * 2))
    assert not batch["hands"][0].any() and batch["hands"][1].flatten(1).any(1).all()
    engine = WorldEngine(load_world("debug"), 1, hands=hands_in(store))
    frames = batch["frames"][1].numpy()
    engine.open(start_at(store, frames[:1]), torch.tensor([0]))
    view = engine.look(engine.state, engine.state.camera, torch.eye(4)[None])
    assert view.hands is not None
    torch.testing.assert_close(batch["hands"][1, 0] / 255, view.hands.picture[0], atol=1 / 255, rtol=0)
    followed = follow(engine, store, frames[1:2])
    assert followed.hands is not None and store.hands is not None
    wrist = torch.from_numpy(store.hands.state[frames[1], 1, :3])
    torch.testing.assert_close(followed.hands.keypoints[0, 1, 0], wrist, atol=1e-5, rtol=0)


def test_a_teacher_is_shown_ahead_also_what_its_generator_dreamed(runs, datasets):
    """Of walks, and of a dream's first frame, nothing changes; a batch of either kind trains."""
    config = adapt_model(preset("debug"))
    stages = [
        teacher.build_stage(
            config, override(teacher.DEFAULTS["debug"], {"own_dreams": count}), datasets, runs / "world"
        )
        for count in (0, 2)
    ]
    plain, own = (stage.clips.prepared for stage in stages)
    for name in ("ahead_guess", "ahead_coverage"):
        one, other = getattr(plain, name), getattr(own, name)
        assert one.shape[:3] == (*plain.frames.shape, config.memory.num_refined - 1)
        assert torch.equal(one[0::2], other[0::2]) and torch.equal(one[:, 0], other[:, 0])
        assert not torch.allclose(one[1, 4], other[1, 4], atol=5e-3)
    model = copy.deepcopy(load_world("debug"))
    model.transformer.config = config.transformer
    kinds = set()
    for step in range(8):
        batch = stages[1].batch(step, 0, 1)
        kinds.add("hands" in batch)
        assert torch.isfinite(stages[1].loss(model, batch, torch.Generator().manual_seed(0))["loss"])
    assert kinds == {False, True}


def test_memory_can_hold_the_generators_own_dreams_of_hands(runs, datasets, store):
    """What memory showed is what the engine is shown that dreams along; the truth and walks are as they were."""
    init, config = runs / "world", preset("debug")
    plain, own = (
        world.build_stage(config, override(world.DEFAULTS["debug"], {"own_dreams": count}), datasets, init).prepared
        for count in (0, 2)
    )
    assert torch.equal(plain.latent, own.latent) and torch.equal(plain.guess[0::2], own.guess[0::2])
    assert torch.equal(plain.retrieved[0::2], own.retrieved[0::2])
    frames = own.frames[1:2].numpy()
    engine = WorldEngine(load_world(init), 1, precision="auto", hands=hands_in(store))
    engine.open(start_at(store, frames[:, 0]), torch.tensor([0]))
    for step in range(1, 4):
        follow(engine, store, frames[:, step])
    view = engine.look(engine.state, engine.state.camera, torch.eye(4)[None], hands_at(engine, store, frames[:, 4]))
    torch.testing.assert_close(
        own.guess[1, 4].float(), view.guess.latent[0], atol=2e-2, rtol=0
    )  # half precision, another batch
    torch.testing.assert_close(own.coverage[1, 4].float(), view.token_coverage[0], atol=1e-3, rtol=0)
    assert not torch.allclose(own.guess[1, 4], plain.guess[1, 4], atol=5e-3)
    assert torch.equal(own.guess[5:], plain.guess[5:])


def test_labels_are_what_the_simulator_let_the_wrist_do(store):
    """The goal is the command of the next frame but for the leash, and goal plus lag is where the wrist went."""
    now = store.starts[1] + np.arange(5, 5 + STEPS // 2)
    assert store.hands is not None
    labels = hand_labels(store, store.hands, now, HandScale())
    assert labels["is_told"].tolist() == [[0.0, 1.0]] * len(now)
    reached = state_from_vector(torch.from_numpy(store.hands.state[now + 1]))
    goal = state_from_vector(labels["goal"])
    torch.testing.assert_close(goal.position + 0.03 * labels["lag"][..., :3], reached.position, atol=1e-6, rtol=0)
    command = state_from_vector(torch.from_numpy(store.hands.command[now + 1]))
    torch.testing.assert_close(goal.rotation[:, 1], command.rotation[:, 1], atol=1e-5, rtol=0)
    torch.testing.assert_close(goal.fingers[:, 1], command.fingers[:, 1], atol=1e-6, rtol=0)
    assert float((goal.position - command.position)[:, 1].norm(dim=-1).max()) < 0.05


def test_a_dense_reward_is_no_goal_that_was_reached(store):
    frames = np.arange(store.starts[1], store.starts[2])
    assert (store.reward[frames[1:]] > 0).all()
    assert np.array_equal(heads.is_paid(store, frames), store.success[frames] > 0)


def test_hands_are_rewarded_for_the_simulators_tasks():
    assert HAND_TASKS == tuple(TASKS)


def test_heads_of_hands_learn(runs, datasets):
    """One batch again and again: the wrist is predicted better than by the kinematic hand, and things are found."""
    stage = heads.build_stage(preset("debug"), heads.DEFAULTS["debug"], datasets, runs / "decoder")
    model = load_world(runs / "decoder")
    model = type(model)(model.config).train()
    batch, optimizer = stage.batch(0, 0, 1), torch.optim.Adam(model.heads.parameters(), lr=5e-3)
    found = []
    for _ in range(200):
        found.append(stage.loss(model, batch, torch.Generator()))
        optimizer.zero_grad()
        found[-1]["loss"].backward()
        optimizer.step()
    first, last = ({name: float(value.detach()) for name, value in loss.items()} for loss in (found[0], found[-1]))
    assert last["object_error"] < 0.5 * first["object_error"] and last["target_error"] < 0.5 * first["target_error"]
    assert last["wrist"] < 0.5 * first["wrist"] and last["wrist_error"] < last["kinematic_error"]


def test_heads_of_pictures_are_named_apart(runs, datasets, tmp_path, capsys):
    """Their provenance stands beside that of the heads they go on from; with nothing to learn there is an error."""
    given = [f"--data={data}" for data in datasets]
    run = ["train", "heads", "--preset", "debug", *given, "--init", str(runs / "heads"), "--steps", "1"]
    assert main([*run, "--out", str(tmp_path / "run"), "--set", "pictures_only=true"]) == 0
    before, after = read_provenance(runs / "heads"), read_provenance(tmp_path / "run")
    assert after["heads"] == before["heads"] and after["heads of pictures"]["data"] == "rooms+tabletop"
    zeros = [f"--set={name}=0" for name in heads.COUNTS]
    assert main([*run, "--out", str(tmp_path / "none"), "--set", "pictures_only=true", *zeros]) != 0
    assert "leaves nothing to train" in capsys.readouterr().err


def test_heads_of_pictures_learn_alone(runs, datasets):
    """Without dreams, and wrists stay as they are."""
    config = replace(heads.DEFAULTS["debug"], pictures_only=True)
    stage = heads.build_stage(preset("debug"), config, datasets, runs / "decoder")
    model = load_world(runs / "decoder").requires_grad_(False)
    assert not stage.rollouts and stage.name != "heads"
    stage.trainable(model).requires_grad_(True)
    batch = stage.batch(0, 0, 1)
    assert "features" not in batch and bool(torch.isfinite(batch["thing_places"]).all())
    stage.loss(model, batch, torch.Generator())["loss"].backward()
    learns = {name.split(".")[1] for name, value in model.named_parameters() if value.grad is not None}
    assert learns == {"motion", "events", "things", "object", "depth"}


@pytest.fixture(scope="module")
def of_hands(runs, datasets):
    """The stage that learns hands and what they uncover."""
    config = override(decoder.DEFAULTS["debug"], {"hands_only": True, "device": "cpu"})
    return decoder.build_stage(preset("debug"), config, datasets, runs / "decoder")


def test_rollouts_of_walkers_are_those_of_an_engine_without_hands(runs, store):
    """In the order that was drawn, whoever has hands."""
    plan = RolloutPlan(episodes=10, dreamed=6, recorded=4, length=4, seed=1)
    frames, model, made = plan.draw(store), load_world(runs / "heads"), []

    def note(store, moment):
        made.append((moment.engine.hands, moment.index))
        return {"latent": moment.engine.state.latent, **told_of_hands(store, moment)}

    rolled = _roll_all(model, store, frames, plan.dreamed, note)
    has_hands = store.hands.moves(frames[:, 0].numpy())
    assert 0 < int(has_hands.sum()) < len(frames)
    for hands, index in made:
        assert (store.hands.moves(index) == (hands is not None)).all()
    assert torch.equal(rolled["drawn"].flatten(1).any(1), has_hands)
    alone = WorldEngine(model, 1, precision="auto")
    for row in (~has_hands[: plan.dreamed]).nonzero()[:, 0].tolist():
        start = frames[row, :1].numpy()
        alone.open(replace(start_at(store, start), hands=None), torch.from_numpy(start))
        for index in frames[row, 1:].numpy():
            follow(alone, store, np.array([index]))
        torch.testing.assert_close(rolled["latent"][row, -1].float(), alone.state.latent[0], atol=0.03, rtol=0)


def test_holes_are_where_memory_shows_no_table_and_no_hand_is(of_hands, store):
    frames, hole, hand, mask = (of_hands.rollouts[name] for name in ("frames", "hole", "hand", "mask"))
    index = frames.flatten().numpy()
    is_table = torch.from_numpy(store.hands.present[index].any(1))
    hole, hand, mask = (part.flatten(0, 1)[:, 0] for part in (hole, hand, mask))
    assert not (hole & mask).any() and not hole[~is_table].any() and hole[is_table].any()
    limbs = store.hands.limbs(index, torch.from_numpy(store.pose[index]))
    depth, pose, intrinsics = (torch.from_numpy(part[index]) for part in (store.depth, store.pose, store.intrinsics))
    owner = owned_by(depth.float(), pose, intrinsics, limbs)
    is_owned, is_hand = owner != NOBODY, (owner != NOBODY) & (owner < OBJECT)
    assert not (hole & is_owned).any() and (~mask & is_owned)[is_table].any()
    assert torch.equal(hole[is_table], (~mask & ~is_owned)[is_table])
    assert (hand | hole)[is_hand].all() and not (hand & hole).any() and not hand[~is_table].any()
    assert 0.01 < hand[is_table].float().mean() < 0.6
    assert torch.equal(of_hands.with_truth, torch.nonzero((hand | hole).flatten(1).any(1))[:, 0])


def test_a_decoder_learns_hands_and_holes_and_keeps_the_rest(of_hands, runs):
    model = copy.deepcopy(load_world(runs / "decoder")).requires_grad_(False)
    both = of_hands.trainable(model).requires_grad_(True)
    optimizer = torch.optim.Adam(both.parameters(), lr=3e-3)
    batch, generator = of_hands.batch(1, 0, 1), torch.Generator().manual_seed(0)
    assert (batch["hole"] + batch["hand"]).flatten(1).any(1).float().mean() >= 0.7
    nothing = {name: torch.zeros_like(batch[name]) for name in ("hole", "hand")}
    asked_of_nothing = of_hands.loss(model, batch | nothing, generator)
    assert asked_of_nothing["pixels"] < 1e-6 and asked_of_nothing["margin"] == 0.0
    found = []
    for _ in range(40):
        found.append(of_hands.loss(model, batch, generator))
        optimizer.zero_grad()
        found[-1]["loss"].backward()
        optimizer.step()
    first, last = found[0], found[-1]
    for name in ("hole_psnr", "hand_psnr"):
        assert first[name] == pytest.approx(float(first[f"{name}_before"]), abs=1e-3)
        assert last[name] > first[name] + 1.0 and last["kept_psnr"] > last[name] + 3.0


def test_a_critic_of_hands_sees_nothing_else_and_takes_turns_with_the_decoder(of_hands, runs):
    model = copy.deepcopy(load_world(runs / "decoder")).requires_grad_(False)
    of_hands.trainable(model).requires_grad_(True)
    learned, generator = [], torch.Generator().manual_seed(0)
    for step in (0, 1):
        batch = of_hands.batch(step, 0, 1)
        model.zero_grad()
        of_hands.critic.zero_grad()
        of_hands.loss(model, batch, generator)["loss"].backward()
        learned.append([any(p.grad is not None for p in part.parameters()) for part in (of_hands.critic, model)])
    assert learned == [[True, False], [True, True]]
    holes = batch | {"hole": torch.maximum(batch["hole"], batch["hand"]), "hand": torch.zeros_like(batch["hand"])}
    assert of_hands.loss(model, holes, generator)["margin"] == 0.0
    assert of_hands.loss(model, batch, generator)["margin"] != 0.0


@torch.no_grad()
def test_a_decoder_that_is_shown_hands_looks_at_them_alone():
    """Where nothing is drawn it decodes the same bits as without, and elsewhere only what lies near has changed."""
    codec, pen = load_world("debug").codec, torch.Generator().manual_seed(0)
    guess = codec.encode_anchor(anchor := empty_anchor(2, 64, torch.zeros(())))
    drawn = torch.zeros(2, 4, 64, 64)
    drawn[1, :, 20:30, 30:36] = torch.rand(4, 10, 6, generator=pen)
    plain, shown = (codec.decode(guess.latent, anchor, guess.skips, hands) for hands in (None, drawn))
    assert torch.equal(plain[0], shown[0])
    changed = (plain[1] != shown[1]).any(0)
    assert changed[20:30, 30:36].all() and not changed[:, :4].any() and not changed[56:].any()


def test_a_decoder_grows_hands_unnoticed(runs):
    """Weights whose decoder was never shown hands go on as they are in a model that shows them."""
    old = copy.deepcopy(load_world(runs / "decoder"))
    old.codec.decoder.hands = None
    old.config = replace(old.config, codec=replace(old.config.codec, hand_width=0))
    grown = WorldModel(preset("debug"))
    assert copy_parts(old, grown) == {"codec": 1.0, "transformer": 1.0, "heads": 1.0}
    guess = grown.codec.encode_anchor(anchor := empty_anchor(1, 64, torch.zeros(())))
    pictures = [
        model.codec.decode(guess.latent, anchor, guess.skips, torch.rand(1, 4, 64, 64)) for model in (old, grown)
    ]
    assert torch.equal(*pictures)


def test_a_decoder_of_hands_is_named_apart_and_wants_hands(runs, datasets, tmp_path, capsys):
    given = [f"--data={data}" for data in datasets]
    run = ["train", "decoder", "--preset", "debug", "--init", str(runs / "heads"), "--steps", "2", *QUIET]
    run += ["--set", "hands_only=true"]
    assert main([*run, *given, "--out", str(tmp_path / "run")]) == 0
    before, after = read_provenance(runs / "heads"), read_provenance(tmp_path / "run")
    assert after["decoder"] == before["decoder"] and after["decoder of hands"]["data"] == "rooms+tabletop"
    one, other = (load_world(path).state_dict() for path in (runs / "heads", tmp_path / "run"))
    changed = {name for name, value in one.items() if not torch.equal(value, other[name])}
    assert changed and all(name.startswith("codec.decoder.") for name in changed)
    config = override(decoder.DEFAULTS["debug"], {"hands_only": True, "device": "cpu"})
    with pytest.raises(ValueError, match="hands_only is about hands"):
        decoder.build_stage(replace(preset("debug"), transformer=handless()), config, datasets[:1], runs / "decoder")


def test_a_hand_decoder_learns_and_leaves_walkers_their_decoder(runs, datasets, tmp_path, capsys):
    given = [f"--data={data}" for data in datasets]
    run = ["train", "decoder", "--preset", "debug", "--steps", "2", *QUIET, *given]
    run += ["--model", "codec.hand_decoder=true"]
    out = tmp_path / "run"
    assert main([*run, "--set", "hands_only=true", "--init", str(runs / "heads"), "--out", str(out)]) == 0
    one, other = (load_world(path) for path in (runs / "heads", out))
    before, after = one.state_dict(), other.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert other.codec.hand_decoder is not None
    learned, begun = other.codec.hand_decoder.state_dict(), other.codec.decoder.state_dict()
    assert any(not torch.equal(value, learned[name]) for name, value in begun.items())
    capsys.readouterr()
    plain = ["train", "decoder", "--preset", "debug", "--steps", "1", *QUIET, *given, "--init", str(out)]
    assert main([*plain, "--out", str(tmp_path / "plain")]) == 0
    assert "hand decoder is left out" in capsys.readouterr().out
    codec = ["train", "codec", "--preset", "debug", *given, "--model", "codec.hand_decoder=true"]
    assert main([*codec, "--out", str(tmp_path / "codec")]) == 1
    assert "hands_only=true" in capsys.readouterr().err


def handless():
    """The debug generator's config, for one that knows no hands."""
    return replace(preset("debug").transformer, hands=False)


def test_a_teacher_dreams_hands_where_they_were(store):
    """Clip after clip along a recording of the tabletop, the hands of every frame are those that a student shows."""
    student = load_world("debug")
    teacher = WorldModel(adapt_model(student.config))
    copy_parts(student, teacher)
    first = int(store.starts[5])  # the first table
    walk = np.arange(first, first + 9)
    made = dream_walk(teacher, store, walk, calls=2, seed=0)
    assert made.shape == (9, 64, 64, 3) and np.array_equal(made[0], store.frames[first])
    clips, steps = ClipEngine(teacher, 1, steps_per_frame=1, hands="right"), WorldEngine(student, 1, hands="right")
    for engine in (clips, steps):
        engine.open(start_at(store, walk[:1]), torch.tensor([0]))
    assert store.hands is not None
    told = store.hands.at(walk[1:]).state[None]
    clips.foresee(torch.from_numpy(store.realised[walk[1:]])[None], hands=told, is_realised=True)
    for index in range(1, 9):
        one, other = (follow(engine, store, walk[[index]]) for engine in (clips, steps))
        assert one.hands is not None and other.hands is not None
        torch.testing.assert_close(one.hands.keypoints, other.hands.keypoints, atol=1e-5, rtol=1e-5)


def test_self_forcing_rolls_out_with_hands(runs, datasets, tmp_path):
    options = ["--set", "sampler=rolling", "--model", "steps_per_frame=2", "--steps", "2"]
    assert main([*command("distill", datasets, tmp_path), *chain(runs, "ode"), *options]) == 0
    told = read_provenance(tmp_path)["distill"]
    assert told["steps"] == 2 and told["config"]["sampler"] == "rolling"
