"""All stages from one command: what a config file may say, and that stopping anywhere changes nothing."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch

from tests.train.walks import walk_store
from worldscape.checkpoint import load_world, read_provenance, weights_id
from worldscape.cli import main
from worldscape.config import preset
from worldscape.train import pipeline
from worldscape.train.pipeline import ORDER, Plan, is_finished, merge_model, plan_runs, read_plan

QUIET = {"steps": 2, "sample_every": 0, "tensorboard": False, "device": "cpu", "checkpoint_every": 2}


def test_each_stage_builds_on_the_one_before_and_students_learn_from_the_world(tmp_path):
    runs = plan_runs("debug", ("rooms",), tmp_path, Plan(stages={"distill": {"steps": 3}}))
    assert [run.stage for run in runs] == list(ORDER)
    assert [run.init for run in runs] == [None, *(str(tmp_path / name) for name in ORDER[:-1])]
    assert {run.stage: run.teacher for run in runs if run.teacher} == dict.fromkeys(
        ("ode", "distill"), str(tmp_path / "world")
    )
    assert next(run for run in runs if run.stage == "distill").config.steps == 3


def test_a_plan_may_say_who_teaches(tmp_path):
    order = ("codec", "teacher", "world", "distill")
    runs = plan_runs("debug", ("rooms",), tmp_path, Plan(order=order, teachers={"distill": "teacher"}))
    assert [run.teacher for run in runs] == [None, None, None, str(tmp_path / "teacher")]


def test_the_first_stage_may_start_from_weights(tmp_path):
    runs = plan_runs("debug", ("rooms",), tmp_path, Plan(order=("teacher", "world")), "nano")
    assert [run.init for run in runs] == ["nano", str(tmp_path / "teacher")]


def test_a_stage_may_build_on_another_than_the_one_before(tmp_path):
    order, builds_on = ("teacher", "world", "ode", "distill"), {"world": "init", "distill": "world"}
    runs = plan_runs("debug", ("rooms",), tmp_path, Plan(order=order, builds_on=builds_on, shares={"ode": 0.5}), "nano")
    assert [run.init for run in runs] == ["nano", "nano", str(tmp_path / "world"), str(tmp_path / "world")]
    runs = plan_runs("debug", ("rooms",), tmp_path, Plan(order=order, shares={"ode": 0.5}), "nano")
    assert runs[-1].init == str(tmp_path / "ode" / "taken")


def test_the_plan_for_a_gpu_is_understood(tmp_path):
    plan = read_plan(Path(__file__).parents[2] / "examples" / "train_nano_gpu.json")
    runs = {run.stage: run for run in plan_runs("nano", ("rooms", "tabletop"), tmp_path, plan, "nano")}
    assert runs["world"].init == "nano" and runs["ode"].init == str(tmp_path / "world")
    assert runs["distill"].teacher == str(tmp_path / "teacher")
    assert all(run.config.lease > 0 for run in runs.values())


def test_a_stage_may_come_again_and_the_model_may_grow(tmp_path):
    order, hands = (
        ("codec", "world", "world-long", "ode", "decoder", "decoder-hands"),
        {"codec": {"hand_decoder": True}},
    )
    settings = {"world-long": {"steps": 7}, "decoder-hands": {"hands_only": True}}
    plan = Plan(order=order, models={"decoder-hands": hands}, stages=settings, shares={"world-long": 0.5})
    runs = plan_runs("debug", ("rooms",), tmp_path, plan)
    assert [run.stage for run in runs] == ["codec", "world", "world", "ode", "decoder", "decoder"]
    assert [run.out.name for run in runs] == list(order)
    assert [run.model.codec.hand_decoder for run in runs] == [False] * 5 + [True]
    assert runs[2].config.steps == 7 != runs[1].config.steps and getattr(runs[5].config, "hands_only", False)
    assert runs[3].init == runs[3].teacher == str(tmp_path / "world-long" / "taken")


def test_a_config_file_says_what_differs(tmp_path):
    file = tmp_path / "plan.json"
    file.write_text(json.dumps({"order": ["codec", "world"], "model": {"memory": {"num_anchors": 3}}}))
    plan = read_plan(file)
    assert plan.order == ("codec", "world")
    model = merge_model(preset("debug"), plan.model)
    assert (model.memory.num_anchors, model.memory.local_window) == (3, preset("debug").memory.local_window)


@pytest.mark.skipif(sys.version_info < (3, 11), reason="TOML needs Python 3.11")
def test_toml_reads_as_json_does(tmp_path):
    file = tmp_path / "plan.toml"
    file.write_text('order = ["codec", "world"]\n[stages.world]\nsteps = 5\n')
    assert read_plan(file) == Plan(order=("codec", "world"), stages={"world": {"steps": 5}})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not readable"),
        ("[]", "holds no table"),
        ('{"stage": {}}', "unknown sections"),
        ('{"stages": {"wings": {}}}', "unknown stage 'wings'"),
        ('{"order": ["codec", "wings-2"]}', "unknown stage 'wings-2'"),
        ('{"order": ["codec"], "models": {"world": {}}}', "models has 'world'"),
        ('{"order": ["codec", "codec"]}', "each once"),
        ('{"teachers": {"world": "codec"}}', "name a student, ode or distill"),
        ('{"teachers": {"distill": "decoder"}}', "a stage before it"),
        ('{"teachers": {"distill": "teacher"}}', "a stage before it"),
        ('{"builds_on": {"world": "distill"}}', "each with one before it"),
        ('{"builds_on": {"spatial": "world"}}', "each with one before it"),
        ('{"shares": {"distill": 1.5}}', "a number from 0 to 1"),
        ('{"shares": {"teacher": 0.5}}', "name stages in order"),
        ('{"order": ["codec", "world"], "shares": {"ode": 0.5}}', "name stages in order"),
        ('{"bits": 4}', "bits is 4; a weight takes 16 or 8"),
        ('{"bits": "8"}', "bits is '8'; a weight takes 16 or 8"),
        ('{"bits": [8]}', r"bits is \[8\]; a weight takes 16 or 8"),
        ('{"shares": {"world": "half"}}', "shares has 'world': 'half'; .* a number from 0 to 1"),
        (
            '{"order": ["codec"], "stages": {"world": {}}}',
            r"stages has 'world', which is no stage in order \['codec'\]",
        ),
        ('{"order": 5}', 'order is 5; give a list of stages such as \\["codec", "world"\\]'),
        ('{"order": "codec"}', "order is 'codec'; give a list of stages"),
        ('{"order": [null]}', r"order is \(None,\); give a list of stages"),
        ('{"stages": []}', r"stages is \[\]; give a table"),
        ('{"stages": {"world": 5}}', "stages has 5 for 'world'; give a table of settings"),
        ('{"model": []}', r"model is \[\]; give a table"),
        ('{"models": {"world": 5}}', "models has 5 for 'world'; give a table of settings"),
    ],
)
def test_config_files_that_are_not_understood_are_named(tmp_path, text, message):
    file = tmp_path / "plan.json"
    file.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_plan(file)


def test_a_section_of_the_model_that_is_no_table_is_refused():
    with pytest.raises(ValueError, match="config.codec is 5; it must be a table of settings"):
        merge_model(preset("debug"), {"codec": 5})


def test_a_student_without_a_teacher_is_refused_before_anything_is_trained(tmp_path):
    """The codec was trained first, and then the teacher's weights were not there."""
    for order in (("codec", "ode"), ("codec", "distill")):
        with pytest.raises(
            ValueError, match=f"'{order[-1]}' has nothing to learn from in order .*: put 'world' before"
        ):
            plan_runs("debug", ("rooms",), tmp_path, Plan(order=order), "nano")
    (run,) = plan_runs("debug", ("rooms",), tmp_path, Plan(order=("ode",)), "nano")
    assert run.teacher == "nano"


@pytest.mark.parametrize("last", ["ode", "spatial", "decoder", "heads"])
def test_a_stage_without_a_generator_is_refused_before_the_codec_is_trained(tmp_path, last):
    """It failed then, or learned from random weights."""
    with pytest.raises(ValueError, match=f"'{last}' builds on a trained generator, which nothing before it .* makes"):
        plan_runs("debug", ("rooms",), tmp_path, Plan(order=("codec", last)))


@pytest.mark.parametrize(
    ("frames", "settings", "message"),
    [
        (5, {}, "stage world: episodes have 5 to 5 frames and dream_frames is 16; clips need 6"),
        (8, {}, "stage distill: episodes have 8 to 8 frames; rollouts of 8 need at least one more"),
        (9, {"heads": {"dream_frames": 9}}, "stage heads: episodes have 9 to 9 frames; .* or lower dream_frames"),
        (9, {"distill": {"rollout": 40, "dreams": 0}}, "stage distill: .* rollouts of 41 need .* or lower rollout"),
    ],
)
def test_episodes_too_short_for_a_stage_are_refused_before_the_first(tmp_path, monkeypatch, frames, settings, message):
    """Hours went into the stages before the one that refused them."""
    monkeypatch.setattr(pipeline, "load_frames", lambda *_, **__: walk_store(frames))
    file = tmp_path / "plan.json"
    file.write_text(json.dumps({"stages": settings}))
    with pytest.raises(ValueError, match=message):
        pipeline.run_pipeline("debug", ("rooms",), tmp_path / "run", file, 0.0)
    assert not (tmp_path / "run").exists()
    pipeline.check_episodes(plan_runs("debug", ("rooms",), tmp_path, Plan()) if frames == 9 else [])


def test_a_stage_counts_as_finished_with_all_its_steps(tmp_path):
    (run,) = plan_runs("debug", ("rooms",), tmp_path, Plan(order=("codec",), stages={"codec": {"steps": 4}}))
    run.out.mkdir()
    found = []
    for status, step in (("minutes", 3), ("finished", 3), ("finished", 4)):
        (run.out / "status.json").write_text(json.dumps({"status": status, "step": step, "steps": step}))
        found.append(is_finished(run))
    assert found == [False, False, True]


def test_a_stage_that_has_used_up_its_lease_is_finished(tmp_path):
    """Or `train all` would end after the first such stage, as if all were done."""
    stages = {"codec": {"steps": 4, "lease": 2.0}}
    (run,) = plan_runs("debug", ("rooms",), tmp_path, Plan(order=("codec",), stages=stages))
    run.out.mkdir()
    found = []
    for status, lease in (("finished", 2.0), ("minutes", 2.0), ("finished", 1.0), ("finished", 0.0)):
        (run.out / "status.json").write_text(json.dumps({"status": status, "step": 3, "steps": 4, "lease": lease}))
        found.append(is_finished(run))
    assert found == [True, False, False, False]


def test_all_stages_train_within_their_leases(tmp_path, capsys):
    data, file = tmp_path / "rooms", tmp_path / "plan.json"
    env = "worldscape.data.rooms:WorldScape-Rooms-v0"
    assert main(["record", "--env", env, "--episodes", "2", "--out", str(data), "--steps-per-episode", "24"]) == 0
    file.write_text(json.dumps({"stages": dict.fromkeys(ORDER, {**QUIET, "steps": 50, "lease": 1e-9})}))
    common = ["train", "all", "--preset", "debug", "--data", str(data), "--config", str(file)]
    assert main([*common, "--out", str(tmp_path / "run")]) == 0
    assert (tmp_path / "run" / "weights").exists()
    capsys.readouterr()
    assert main([*common, "--out", str(tmp_path / "run")]) == 0
    assert capsys.readouterr().out.count("finished before, kept") == len(ORDER)


def test_the_bidirectional_teacher_teaches_from_one_command(tmp_path):
    """The student of a whole pipeline is causal, and its weights name the teacher that it learned from."""
    data, file, out = tmp_path / "rooms", tmp_path / "plan.json", tmp_path / "run"
    env = "worldscape.data.rooms:WorldScape-Rooms-v0"
    assert main(["record", "--env", env, "--episodes", "2", "--out", str(data), "--steps-per-episode", "24"]) == 0
    order = ["codec", "teacher", "world", "distill"]
    stages = dict.fromkeys(order, QUIET) | {"distill": {**QUIET, "window": 2}}
    plan = {"order": order, "stages": stages, "teachers": {"distill": "teacher"}, "shares": {"distill": 0.25}}
    file.write_text(json.dumps(plan))
    common = ["train", "all", "--preset", "debug", "--data", str(data), "--config", str(file), "--out", str(out)]
    assert main(common) == 0
    teacher, student = load_world(out / "teacher"), load_world(out / "weights")
    assert not teacher.config.transformer.is_causal and student.config.transformer.is_causal
    assert read_provenance(out / "weights")["distill"]["teacher"] == weights_id(teacher)
    before, after, taken = (
        load_world(out / name).transformer.to_latent.weight for name in ("world", "distill", "weights")
    )
    assert not torch.equal(before, after)
    torch.testing.assert_close(taken, before.lerp(after, 0.25))
    assert main(common) == 0  # all there already
    assert read_provenance(out / "weights")["distill taken"] == 0.25 and not list(out.glob("*.before-*"))


def test_a_stage_whose_beginnings_changed_begins_again(tmp_path, capsys):
    """Another share of `world` changes what `ode` builds on, not what `world` does; `ode` ends as in a run anew."""
    data, file = tmp_path / "rooms", tmp_path / "plan.json"
    env = "worldscape.data.rooms:WorldScape-Rooms-v0"
    assert main(["record", "--env", env, "--episodes", "2", "--out", str(data), "--steps-per-episode", "24"]) == 0
    order = ["codec", "world", "ode"]

    def train_with(share: float, out: str) -> str:
        file.write_text(json.dumps({"order": order, "stages": dict.fromkeys(order, QUIET), "shares": {"world": share}}))
        common = ["train", "all", "--preset", "debug", "--data", str(data), "--config", str(file)]
        capsys.readouterr()
        assert main([*common, "--out", str(tmp_path / out)]) == 0
        return capsys.readouterr().out

    train_with(0.5, "run")
    again = train_with(0.25, "run")
    assert again.count("finished before, kept") == 2 and "ode: what it began with has changed" in again
    assert (tmp_path / "run" / "ode.before-1" / "weights").exists()
    train_with(0.25, "anew")
    assert weights_id(load_world(tmp_path / "run" / "weights")) == weights_id(load_world(tmp_path / "anew" / "weights"))
    assert train_with(0.25, "run").count("finished before, kept") == 3


def test_recordings_made_anew_are_learned_anew(tmp_path, capsys):
    """Under the same name and with as many steps; a stage by itself refuses to go on with them."""
    data, file, out = tmp_path / "rooms", tmp_path / "plan.json", tmp_path / "run"
    env = "worldscape.data.rooms:WorldScape-Rooms-v0"
    file.write_text(json.dumps({"order": ["codec"], "stages": {"codec": QUIET}}))

    def record(seed: int) -> None:
        shutil.rmtree(data, ignore_errors=True)
        options = ["--episodes", "2", "--out", str(data), "--steps-per-episode", "24", "--seed", str(seed)]
        assert main(["record", "--env", env, *options]) == 0

    def train_all() -> str:
        capsys.readouterr()
        common = ["train", "all", "--preset", "debug", "--data", str(data), "--config", str(file), "--out", str(out)]
        assert main(common) == 0
        return capsys.readouterr().out

    record(0)
    train_all()
    assert "finished before, kept" in train_all()
    record(500)
    longer = ["train", "codec", "--preset", "debug", "--data", str(data), "--out", str(out / "codec"), "--steps", "9"]
    assert main(longer) != 0
    assert "it began with other recordings (--data); use another --out" in capsys.readouterr().err
    assert "codec: what it began with has changed (data)" in train_all()


def test_a_stage_goes_on_with_the_weights_that_it_began_with_alone(tmp_path, capsys):
    data = tmp_path / "rooms"
    env = "worldscape.data.rooms:WorldScape-Rooms-v0"
    assert main(["record", "--env", env, "--episodes", "2", "--out", str(data), "--steps-per-episode", "24"]) == 0
    quiet = ["--set=sample_every=0", "--set=tensorboard=false", "--set=device=cpu"]
    common = ["train", "codec", "--preset", "debug", "--data", str(data), *quiet]
    for seed in (0, 1):
        assert main([*common, "--out", str(tmp_path / f"run{seed}"), "--steps", "1", f"--set=seed={seed}"]) == 0
    longer = [*common, "--out", str(tmp_path / "run1"), "--steps", "2", "--set=seed=1"]
    assert main([*longer, "--init", str(tmp_path / "run0")]) != 0
    assert "it began with other weights (--init); use another --out" in capsys.readouterr().err
    assert main(longer) == 0


def test_a_finished_stage_begins_again_with_other_settings_and_a_stopped_one_goes_on(tmp_path, capsys):
    data, file, out = tmp_path / "rooms", tmp_path / "plan.json", tmp_path / "run"
    env = "worldscape.data.rooms:WorldScape-Rooms-v0"
    assert main(["record", "--env", env, "--episodes", "2", "--out", str(data), "--steps-per-episode", "24"]) == 0

    def train_with(*options: str, **settings: float) -> str:
        stages = {"codec": QUIET | {"steps": 3} | settings}
        file.write_text(json.dumps({"order": ["codec"], "stages": stages}))
        capsys.readouterr()
        common = ["train", "all", "--preset", "debug", "--data", str(data), "--config", str(file), "--out", str(out)]
        assert main([*common, *options]) in (0, 128 + 15)
        return capsys.readouterr().out

    train_with("--minutes", "1e-9")  # stopped after a step
    assert "resuming with lr = 0.002" in train_with(lr=0.002)
    first = weights_id(load_world(out))
    assert "finished before, kept" in train_with(lr=0.002, log_every=1)  # which changes nothing
    assert "has changed (settings)" in train_with(lr=0.003)
    assert weights_id(load_world(tmp_path / "run" / "codec.before-1")) == first
    assert "has changed (model)" not in train_with(lr=0.003, steps=5)  # goes on
    assert json.loads((out / "codec" / "status.json").read_text())["step"] == 5
    assert list(read_provenance(out)) == ["codec"]
    assert "has changed (init)" in train_with("--init", str(out / "codec.before-1"), lr=0.003, steps=5)


def test_a_stage_that_was_trained_before_is_told_of_twice(tmp_path):
    data, file = tmp_path / "rooms", tmp_path / "plan.json"
    env = "worldscape.data.rooms:WorldScape-Rooms-v0"
    assert main(["record", "--env", env, "--episodes", "2", "--out", str(data), "--steps-per-episode", "24"]) == 0
    order = ["codec", "codec-longer", "codec-again"]
    steps = {name: QUIET | {"steps": number} for number, name in enumerate(order, 1)}
    file.write_text(json.dumps({"order": order, "stages": steps}))
    common = ["train", "all", "--preset", "debug", "--data", str(data), "--config", str(file)]
    assert main([*common, "--out", str(tmp_path / "run")]) == 0
    told = read_provenance(tmp_path / "run" / "weights")
    assert {name: facts["steps"] for name, facts in told.items()} == {"codec": 1, "codec-2": 2, "codec-3": 3}


def test_stopped_after_every_step_it_ends_with_the_same_weights(tmp_path):
    data, file = tmp_path / "rooms", tmp_path / "plan.json"
    env = "worldscape.data.rooms:WorldScape-Rooms-v0"
    assert main(["record", "--env", env, "--episodes", "2", "--out", str(data), "--steps-per-episode", "24"]) == 0
    file.write_text(json.dumps({"stages": dict.fromkeys(ORDER, QUIET)}))
    common = ["train", "all", "--preset", "debug", "--data", str(data), "--config", str(file)]
    assert main([*common, "--out", str(tmp_path / "whole")]) == 0
    calls = 0
    while not (tmp_path / "parts" / "weights").exists():
        assert main([*common, "--out", str(tmp_path / "parts"), "--minutes", "1e-9"]) == 0
        calls += 1
        assert calls < 30
    assert calls > len(ORDER)
    whole, parts = (load_world(tmp_path / name).state_dict() for name in ("whole", "parts"))
    assert all(torch.equal(tensor, parts[key]) for key, tensor in whole.items())
    assert set(ORDER) <= read_provenance(tmp_path / "parts").keys()
