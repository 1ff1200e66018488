"""The loop: resume is bit-exact after every kind of stop, two ranks equal one, and bad runs end with clear errors."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import imageio.v3 as imageio
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from tests.train.toys import ToyStage, ToyWorld, toy_config, train_toy
from worldscape.checkpoint import CONFIG_FILE
from worldscape.locked import locked
from worldscape.train.log import format_seconds
from worldscape.train.loop import compile_parts
from worldscape.train.optim import lr_at
from worldscape.train.runtime import step_seed
from worldscape.world import debug_world

HERE = Path(__file__).parent
ROOT = HERE.parents[1]


def run_toy(*arguments: object, torchrun: int = 0) -> subprocess.CompletedProcess[str]:
    """Start toys.py in its own process (or in several, under torchrun)."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={torchrun}"] if torchrun else []
    command = [sys.executable, *launcher, str(HERE / "toys.py"), *map(str, arguments)]
    env = {**os.environ, "PYTHONPATH": f"{ROOT / 'models'}{os.pathsep}{ROOT}", "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=300, check=False)


@pytest.fixture(autouse=True)
def one_thread():
    """Sums over several threads differ in the last digit, and subprocesses run with one."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def run_files(out: Path, step: int) -> dict[str, dict[str, Tensor]]:
    """All tensors of a checkpoint, by file."""
    folder = out / "checkpoints" / f"step_{step:08d}"
    return {name: load_file(folder / f"{name}.safetensors") for name in ("model", "ema", "optimizer")}


def assert_same_run(one: Path, other: Path, step: int = 10) -> None:
    for name, tensors in run_files(one, step).items():
        others = run_files(other, step)[name]
        assert tensors.keys() == others.keys()
        for key, tensor in tensors.items():
            assert torch.equal(tensor, others[key]), f"{name}: {key}"


def read_status(out: Path) -> dict[str, object]:
    return json.loads((out / "status.json").read_text())


def read_log(out: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("changes", [{}, {"optimizer": "muon"}, {"precision": "bf16", "schedule": "cosine"}])
def test_resume_after_sigterm_is_bit_exact(tmp_path, changes):
    config = toy_config(**changes)
    train_toy(ToyStage(), ToyWorld(), config, tmp_path / "whole")
    train_toy(ToyStage(kill_at=6, signal_number=signal.SIGTERM), ToyWorld(), config, tmp_path / "parts")
    assert read_status(tmp_path / "parts") == {"status": "SIGTERM", "step": 7, "steps": 10}
    resumed = train_toy(ToyStage(), ToyWorld(), config, tmp_path / "parts")
    assert read_status(tmp_path / "parts") == {"status": "finished", "step": 10, "steps": 10}
    assert_same_run(tmp_path / "whole", tmp_path / "parts")
    assert not resumed.training and not any(p.requires_grad for p in resumed.parameters())
    for key, tensor in run_files(tmp_path / "whole", 10)["ema"].items():
        assert torch.equal(tensor, resumed.transformer.state_dict()[key])


def test_resume_after_sigkill_between_checkpoints_is_bit_exact(tmp_path):
    train_toy(ToyStage(), ToyWorld(), toy_config(), tmp_path / "whole")
    killed = run_toy(tmp_path / "parts", 6, int(signal.SIGKILL), 0.1, 0.1)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert read_status(tmp_path / "parts")["status"] == "running"
    (tmp_path / "parts/checkpoints/.partial_step_00000008").mkdir()  # what a kill in the middle of a save leaves
    train_toy(ToyStage(), ToyWorld(), toy_config(), tmp_path / "parts")
    assert_same_run(tmp_path / "whole", tmp_path / "parts")
    assert [entry["step"] for entry in read_log(tmp_path / "parts")] == [3, 6, 9, 10]


def test_sigint_stops_with_a_checkpoint_and_gives_the_handlers_back(tmp_path, capsys):
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    train_toy(ToyStage(kill_at=1, signal_number=signal.SIGINT), ToyWorld(), toy_config(), tmp_path)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
    assert (tmp_path / "checkpoints/step_00000002/state.json").exists()
    assert "stopped at step 2 of 10 (SIGINT): the same command goes on from here" in capsys.readouterr().out


def test_minutes_stop_early_and_the_rest_follows(tmp_path):
    train_toy(ToyStage(), ToyWorld(), toy_config(), tmp_path / "whole")
    train_toy(ToyStage(), ToyWorld(), toy_config(minutes=1e-9), tmp_path / "parts")
    assert read_status(tmp_path / "parts") == {"status": "minutes", "step": 1, "steps": 10}
    train_toy(ToyStage(), ToyWorld(), toy_config(), tmp_path / "parts")
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


def test_a_lease_finishes_the_run(tmp_path):
    """It is finished when the lease is over, over all calls, and the same command has nothing left to do."""
    train_toy(ToyStage(), ToyWorld(), toy_config(lease=1e-9), tmp_path)
    assert read_status(tmp_path) == {"status": "finished", "step": 1, "steps": 10, "lease": 1e-9}
    train_toy(ToyStage(), ToyWorld(), toy_config(lease=1e-9), tmp_path)
    assert read_status(tmp_path) == {"status": "finished", "step": 1, "steps": 10, "lease": 1e-9}
    train_toy(ToyStage(), ToyWorld(), toy_config(lease=60.0), tmp_path / "long")
    assert read_status(tmp_path / "long") == {"status": "finished", "step": 10, "steps": 10, "lease": 60.0}


def test_a_finished_run_extends_to_more_steps(tmp_path, capsys):
    """With a flat schedule the first ten steps do not know the end, so ten plus five are the same as fifteen."""
    flat = {"decay_fraction": 0.0}
    train_toy(ToyStage(), ToyWorld(), toy_config(**flat, steps=15), tmp_path / "whole")
    train_toy(ToyStage(), ToyWorld(), toy_config(**flat), tmp_path / "parts")
    train_toy(ToyStage(), ToyWorld(), toy_config(**flat, steps=15), tmp_path / "parts")
    assert "resuming with steps = 15 (was 10)" in capsys.readouterr().out
    assert_same_run(tmp_path / "whole", tmp_path / "parts", step=15)


def test_samples_and_threads_leave_no_trace(tmp_path):
    threads = 3
    torch.set_num_threads(threads)
    random_state = torch.get_rng_state()
    train_toy(ToyStage(), ToyWorld(), toy_config(threads=1), tmp_path / "plain")
    train_toy(ToyStage(), ToyWorld(), toy_config(sample_every=4, threads=1), tmp_path / "sampled")
    assert_same_run(tmp_path / "plain", tmp_path / "sampled")
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.get_rng_state(), random_state)
    names = sorted(path.name for path in (tmp_path / "sampled/samples").iterdir())
    steps = ("00000004", "00000008", "00000010")
    assert names == [f"grid_{step}.png" for step in steps] + [f"rollout_{step}.mp4" for step in steps]
    assert np.all(imageio.imread(tmp_path / "sampled/samples/grid_00000008.png") == 8)


def test_batches_drawn_ahead_in_other_processes_train_the_same(tmp_path):
    train_toy(ToyStage(), ToyWorld(), toy_config(), tmp_path / "here")
    train_toy(ToyStage(), ToyWorld(), toy_config(loaders=2), tmp_path / "ahead")
    assert_same_run(tmp_path / "here", tmp_path / "ahead")


def test_only_the_trained_part_changes(tmp_path):
    fresh, model = ToyWorld(), ToyWorld()
    average = train_toy(ToyStage(), model, toy_config(), tmp_path)
    for name, tensor in fresh.state_dict().items():
        is_same = torch.equal(tensor, average.state_dict()[name]) and torch.equal(tensor, model.state_dict()[name])
        assert is_same != name.startswith("transformer."), name


def test_the_last_two_checkpoints_stay_and_weights_are_written(tmp_path):
    train_toy(ToyStage(), ToyWorld(), toy_config(checkpoint_every=2), tmp_path, provenance={"codec": {"data": "rooms"}})
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["step_00000008", "step_00000010"]
    header = json.loads((tmp_path / "weights" / CONFIG_FILE).read_text())
    assert header["provenance"]["codec"] == {"data": "rooms"}
    assert header["provenance"]["toy"]["steps"] == 10
    assert header["provenance"]["toy"]["config"] == toy_config(checkpoint_every=2).to_dict()
    weights = load_file(tmp_path / "weights/transformer.safetensors")
    for key, tensor in run_files(tmp_path, 10)["ema"].items():
        assert torch.equal(weights[key], tensor.half())


def test_the_log_has_means_of_the_interval_lr_and_speed(tmp_path, capsys):
    train_toy(ToyStage(), ToyWorld(), toy_config(log_every=1), tmp_path / "each")
    train_toy(ToyStage(), ToyWorld(), toy_config(log_every=5), tmp_path / "five")
    each, five = read_log(tmp_path / "each"), read_log(tmp_path / "five")
    assert [entry["step"] for entry in five] == [5, 10]
    assert five[0]["loss"] == pytest.approx(np.mean([entry["loss"] for entry in each[:5]]), rel=1e-5)
    assert five[0]["lr"] == lr_at(toy_config(), 4)
    assert five[0].keys() == {"step", "loss", "error", "grad_norm", "lr", "it_s"}
    assert "step 5/10 loss" in capsys.readouterr().out


def test_a_terminal_gets_a_progress_bar(tmp_path, monkeypatch):
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setattr(sys, "stderr", terminal)
    train_toy(ToyStage(), ToyWorld(), toy_config(), tmp_path)
    shown = terminal.getvalue()
    assert "toy:" in shown and "10/10" in shown and "loss" in shown
    assert f"finished 10 steps: {tmp_path / 'weights'}" in shown


def test_tensorboard_gets_the_scalars(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    train_toy(ToyStage(), ToyWorld(), toy_config(tensorboard=True), tmp_path)
    events = accumulator.EventAccumulator(str(tmp_path / "tb"))
    events.Reload()
    logged = [(event.step, event.value) for event in events.Scalars("loss")]
    assert logged == [(entry["step"], pytest.approx(entry["loss"])) for entry in read_log(tmp_path)]


def test_missing_tensorboard_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ImportError, match=r"pip install 'worldscape\[train\]', or switch it off with --set"):
        train_toy(ToyStage(), ToyWorld(), toy_config(tensorboard=True), tmp_path)


def test_a_loss_that_is_not_finite_stops_before_the_weights_change(tmp_path):
    class SickStage(ToyStage):
        def batch(self, step, rank, world_size):
            x = super().batch(step, rank, world_size)["x"]
            return {"x": x * float("nan") if step == 5 else x}

    with pytest.raises(FloatingPointError, match=r"step 6: loss nan.*last good checkpoint is .*step_00000004"):
        train_toy(SickStage(), ToyWorld(), toy_config(), tmp_path)
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["step_00000004"]
    train_toy(ToyStage(), ToyWorld(), toy_config(), tmp_path)
    train_toy(ToyStage(), ToyWorld(), toy_config(), tmp_path.with_name("whole"))
    assert_same_run(tmp_path, tmp_path.with_name("whole"))


def test_two_runs_do_not_train_in_one_place(tmp_path):
    with locked(tmp_path), pytest.raises(ValueError, match=f"is in use by process {os.getpid()}"):
        train_toy(ToyStage(), ToyWorld(), toy_config(), tmp_path)
    train_toy(ToyStage(), ToyWorld(), toy_config(), tmp_path)


def test_bad_samples_are_named(tmp_path):
    stage = ToyStage()
    stage.samples = lambda model, step: {"grid": np.zeros((4, 4, 3), np.float32)}
    with pytest.raises(ValueError, match=r"sample 'grid' is float32 \(4, 4, 3\): give uint8"):
        train_toy(stage, ToyWorld(), toy_config(sample_every=1), tmp_path)


def test_compiled_training_runs_close_to_plain(tmp_path, monkeypatch):
    """The eager backend keeps the arithmetic, so this checks that compiling leaves names and state as they were."""
    compile_module = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda module: compile_module(module, backend="eager"))
    train_toy(ToyStage(), ToyWorld(), toy_config(), tmp_path / "plain")
    train_toy(ToyStage(), ToyWorld(), toy_config(compile=True), tmp_path / "compiled")
    assert_same_run(tmp_path / "plain", tmp_path / "compiled")


def test_what_is_compiled_is_what_stages_call(monkeypatch):
    """Several modules in one are not called themselves, nor is one without a forward, such as codec and heads."""
    model, compiled = debug_world(), []
    monkeypatch.setattr(nn.Module, "compile", lambda module: compiled.append(module))
    several = nn.ModuleDict({"student": model.transformer, "heads": model.heads, "codec": model.codec})
    compile_parts(several)
    heads = [module for name, module in several.named_modules() if name.count(".") == 1 and name.startswith("heads.")]
    expected = [model.transformer, *heads, model.codec.encoder, model.codec.decoder]
    assert len(heads) > 2 and {id(module) for module in compiled} == {id(module) for module in expected}


def test_two_ranks_equal_one_process_with_the_joint_batch(tmp_path):
    """Averaged gradients of two halves against one batch of eight: float32 sums in another order, 1e-5 apart.

    toys.py ends with an error where a thread of the process group is left.
    """
    joint = ToyStage(batch_size=8, noise=0.0)
    model = ToyWorld()
    model.transformer.dropout.p = 0.0
    train_toy(joint, model, toy_config(batch_size=8), tmp_path / "one")
    done = run_toy(tmp_path / "two", -1, 9, 0.0, 0.0, torchrun=2)
    assert done.returncode == 0, done.stderr[-3000:]
    for name in ("model", "ema"):
        one, two = (run_files(tmp_path / out, 10)[name] for out in ("one", "two"))
        for key, tensor in one.items():
            torch.testing.assert_close(two[key], tensor, atol=1e-5, rtol=1e-5)
    ranks = [load_file(tmp_path / f"two/rank_{rank}.safetensors") for rank in (0, 1)]
    assert all(torch.equal(tensor, ranks[1][key]) for key, tensor in ranks[0].items())
    assert read_log(tmp_path / "two")[-1]["loss"] == pytest.approx(read_log(tmp_path / "one")[-1]["loss"], rel=1e-4)


def test_step_seeds_differ_by_seed_step_and_rank():
    seeds = {step_seed(seed, step, rank) for seed in range(5) for step in range(50) for rank in range(4)}
    assert len(seeds) == 1000 and all(0 <= seed < 2**63 for seed in seeds)
    assert step_seed(1, 2, 3) == step_seed(1, 2, 3)


def test_format_seconds():
    assert [format_seconds(s) for s in (59.9, 60, 3725, 360000)] == ["0:00:59", "0:01:00", "1:02:05", "100:00:00"]
