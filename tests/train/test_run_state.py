"""Checkpoints of a run: damaged ones are skipped or refused, those of another run are refused."""

from __future__ import annotations

import shutil

import pytest
import torch

from tests.train.toys import ToyStage, ToyWorld, toy_config, train_toy
from worldscape.train.run_state import digest_frozen, list_checkpoints


@pytest.fixture
def run(tmp_path):
    """A finished run with checkpoints at 8 and 10."""
    train_toy(ToyStage(), ToyWorld(), toy_config(), tmp_path)
    return tmp_path


def damage(path, how):
    data = path.read_bytes()
    if how == "truncated":
        path.write_bytes(data[: len(data) // 2])
    elif how == "flipped":
        path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    elif how == "foreign":
        path.write_bytes(b"[1, 2]")
    else:
        path.unlink()


@pytest.mark.parametrize(
    ("name", "how"),
    [
        ("state.json", "truncated"),
        ("state.json", "foreign"),
        ("state.json", "missing"),
        ("model.safetensors", "truncated"),
        ("ema.safetensors", "flipped"),
        ("optimizer.safetensors", "foreign"),
        ("optimizer.safetensors", "missing"),
    ],
)
def test_a_damaged_checkpoint_falls_back_to_the_one_before(run, capsys, name, how):
    before = {k: v.clone() for k, v in train_toy(ToyStage(), ToyWorld(), toy_config(), run).state_dict().items()}
    damage(run / "checkpoints/step_00000010" / name, how)
    again = train_toy(ToyStage(), ToyWorld(), toy_config(), run)
    said = capsys.readouterr().out
    assert "skipped: checkpoint" in said and "step_00000010 is damaged" in said
    assert f"resumed from {run / 'checkpoints/step_00000008'}" in said
    assert all(torch.equal(tensor, before[key]) for key, tensor in again.state_dict().items())


def test_only_damaged_checkpoints_are_an_error_that_deletes_nothing(run):
    for path in list_checkpoints(run / "checkpoints"):
        damage(path / "ema.safetensors", "truncated")
    with pytest.raises(ValueError, match=r"no checkpoint in .* is whole .*ema.safetensors does not match its checksum"):
        train_toy(ToyStage(), ToyWorld(), toy_config(), run)
    assert len(list_checkpoints(run / "checkpoints")) == 2


def test_another_stage_is_refused(run):
    stage = ToyStage()
    stage.name = "codec"
    with pytest.raises(ValueError, match=r"is of another run: stage 'toy', not 'codec'; use another --out"):
        train_toy(stage, ToyWorld(), toy_config(), run)


def test_other_frozen_weights_are_refused(run):
    with pytest.raises(ValueError, match=r"the weights that this stage does not train differ \(was --init another"):
        train_toy(ToyStage(), ToyWorld(seed=1), toy_config(), run)


@pytest.mark.parametrize(("key", "value"), [("seed", 3), ("batch_size", 2), ("optimizer", "muon")])
def test_settings_that_shape_the_run_must_stay(run, key, value):
    with pytest.raises(ValueError, match=rf"has {key} = .*, not {value!r}: keep it or use another --out"):
        train_toy(ToyStage(), ToyWorld(), toy_config(**{key: value}), run)


def test_other_settings_may_change_and_are_told(run, capsys):
    train_toy(ToyStage(), ToyWorld(), toy_config(lr=0.02, steps=11), run)
    said = capsys.readouterr().out
    assert "resuming with lr = 0.02 (was 0.01)" in said and "resuming with steps = 11 (was 10)" in said


def test_another_model_config_is_refused(run):
    model = ToyWorld()
    model.config = type(model.config)(name="other")
    with pytest.raises(ValueError, match=r"the model config differs in name"):
        train_toy(ToyStage(), model, toy_config(), run)


def test_other_folders_among_the_checkpoints_are_left_alone(run):
    shutil.copytree(run / "checkpoints/step_00000010", run / "checkpoints/mine")
    train_toy(ToyStage(), ToyWorld(), toy_config(steps=12), run)
    assert sorted(p.name for p in (run / "checkpoints").iterdir()) == ["mine", "step_00000010", "step_00000012"]


def test_digest_sees_frozen_weights_only():
    one, other = ToyWorld(), ToyWorld()
    with torch.no_grad():
        other.transformer.project_in.weight += 1
    assert digest_frozen(one, one.transformer) == digest_frozen(other, other.transformer)
    assert digest_frozen(one, one.codec) != digest_frozen(other, other.codec)
