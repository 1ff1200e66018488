"""Schedules, averaged weights, who optimises what, and the config that holds their numbers."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import nn

from tests.train.toys import ToyTransformer, toy_config
from worldscape.train.config import TrainConfig, override, parse_assignments
from worldscape.train.optim import (
    build_optimizers,
    ema_decay_at,
    load_optimizer_tensors,
    lr_at,
    optimizer_tensors,
    set_lr,
    split_parameters,
    update_ema,
)


def test_wsd_schedule_values():
    config = TrainConfig(steps=100, lr=1.0, warmup=10, decay_fraction=0.4)
    values = {0: 0.1, 4: 0.5, 9: 1.0, 10: 1.0, 60: 1.0, 61: 39 / 40, 80: 0.5, 99: 1 / 40, 100: 0.0, 150: 0.0}
    assert {step: lr_at(config, step) for step in values} == pytest.approx(values)


def test_cosine_schedule_values():
    config = TrainConfig(steps=110, lr=2.0, warmup=10, schedule="cosine")
    values = {4: 1.0, 10: 2.0, 35: 1 + 0.5**0.5, 60: 1.0, 110: 0.0, 200: 0.0}
    assert {step: lr_at(config, step) for step in values} == pytest.approx(values)


@pytest.mark.parametrize("schedule", ["wsd", "cosine"])
def test_a_lease_ends_the_schedule_with_the_clock(schedule):
    """Half of the lease is as far as half of the steps, and whichever is farther counts."""
    by_steps = TrainConfig(steps=100, lr=1.0, warmup=0, schedule=schedule)
    leased = TrainConfig(steps=1000, lr=1.0, warmup=0, schedule=schedule, lease=2.0)
    for share in (0.1, 0.5, 0.7, 0.9, 1.0, 1.2):
        assert lr_at(leased, 10, seconds=120 * share) == pytest.approx(lr_at(by_steps, round(100 * share)))
    assert lr_at(leased, 900, seconds=12.0) == pytest.approx(lr_at(by_steps, 90))
    assert lr_at(leased, 1, seconds=0.0) == pytest.approx(lr_at(leased, 1))


@pytest.mark.parametrize("schedule", ["wsd", "cosine"])
def test_a_run_that_ends_while_it_warms_up_ends_low(schedule):
    config = TrainConfig(steps=1000, lr=1.0, warmup=100, schedule=schedule, lease=1.0)
    assert lr_at(config, 49, seconds=3.0) == pytest.approx(0.5)
    assert lr_at(config, 60, seconds=59.9) < 0.02


def test_no_warmup_and_no_decay_are_flat():
    config = TrainConfig(steps=10, lr=0.5, warmup=0, decay_fraction=0.0)
    assert [lr_at(config, step) for step in range(10)] == [0.5] * 10


def test_ema_closed_form():
    """Of constant decay d from x0 towards values v: d^n x0 + (1 - d) sum d^(n-1-i) v_i; buffers are copied."""
    module, average = ToyTransformer(), ToyTransformer()
    nn.init.constant_(average.project_in.weight, 5.0)
    values, decay = [1.0, -2.0, 4.0], 0.9
    for value in values:
        nn.init.constant_(module.project_in.weight, value)
        module.seen.fill_(value)
        update_ema(average, module, decay)
    expected = decay**3 * 5.0 + 0.1 * sum(decay ** (2 - i) * value for i, value in enumerate(values))
    torch.testing.assert_close(average.project_in.weight, torch.full((8, 4), expected))
    assert average.seen == 4.0


def test_ema_decay_ramps_up():
    config = toy_config(ema=0.9)
    assert [ema_decay_at(config, step) for step in (0, 8, 79, 80, 1000)] == pytest.approx([0.1, 0.5, 80 / 89, 0.9, 0.9])
    assert ema_decay_at(toy_config(ema=0.0), 50) == 0.0


def test_parameter_split():
    split = split_parameters(ToyTransformer(), use_muon=True)
    assert split.muon == ["blocks.0.1.weight", "blocks.1.1.weight"]
    assert split.decayed == ["project_in.weight", "conv.weight"]
    assert split.plain == [
        "embedding.weight",
        "project_in.bias",
        *(f"blocks.{i}.{name}" for i in (0, 1) for name in ("0.weight", "0.bias", "1.bias")),
        "conv.bias",
    ]
    plain = split_parameters(ToyTransformer(), use_muon=False)
    assert plain.muon == [] and set(split.muon) <= set(plain.decayed)


def test_optimizers_take_every_parameter_once():
    module = ToyTransformer()
    adamw, muon = build_optimizers(module, toy_config(optimizer="muon", weight_decay=0.3))
    taken = [p.data_ptr() for optimizer in (adamw, muon) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(taken) == sorted(p.data_ptr() for p in module.parameters())
    assert [group["weight_decay"] for group in adamw.param_groups] == [0.3, 0.0]
    set_lr([adamw, muon], 0.25)
    assert {group["lr"] for optimizer in (adamw, muon) for group in optimizer.param_groups} == {0.25}


def test_muon_without_support_or_blocks_is_a_clear_error(monkeypatch):
    with pytest.raises(ValueError, match=r"no layers in an nn.ModuleList of blocks: use optimizer=adamw"):
        build_optimizers(nn.Linear(2, 2), toy_config(optimizer="muon"))
    monkeypatch.delattr(torch.optim, "Muon")
    with pytest.raises(ValueError, match=r"needs torch 2.9 or newer, not .*: use optimizer=adamw"):
        build_optimizers(ToyTransformer(), toy_config(optimizer="muon"))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_muon_moves_a_convolution_as_the_matrix_of_its_filters(layout):
    """One row an output channel: the same step as a linear layer of the flattened filters; order of columns is free."""
    torch.manual_seed(0)
    conv = nn.Conv2d(6, 4, 3, bias=False)
    conv.to(memory_format=layout)  # pyright: ignore[reportCallIssue]
    before, gradient = conv.weight.detach().clone(), torch.randn(4, 6, 3, 3)
    muon = build_optimizers(nn.ModuleList([conv]), toy_config(optimizer="muon", lr=0.1))[-1]
    conv.weight.grad = gradient.contiguous(memory_format=layout)
    muon.step()
    matrix = nn.Parameter(before.flatten(1).clone())
    matrix.grad = gradient.flatten(1)
    group = muon.param_groups[0]
    settings = {"lr": 0.1, "weight_decay": group["weight_decay"], "adjust_lr_fn": "match_rms_adamw"}
    torch.optim.Muon([matrix], **settings).step()
    torch.testing.assert_close(conv.weight.detach().flatten(1), matrix.detach(), atol=2e-4, rtol=0.01)
    assert not torch.equal(conv.weight, before) and conv.weight.grad is None


def test_optimizer_state_survives_its_tensor_form():
    module = ToyTransformer()
    config = toy_config(optimizer="muon")
    optimizers = build_optimizers(module, config)
    module(torch.randn(4, 4)).sum().backward()
    for optimizer in optimizers:
        optimizer.step()
    fresh = build_optimizers(module, config)
    load_optimizer_tensors(fresh, optimizer_tensors(optimizers))
    saved, loaded = optimizer_tensors(optimizers), optimizer_tensors(fresh)
    assert saved.keys() == loaded.keys() and len(saved) > 10
    assert all(torch.equal(tensor, loaded[key]) for key, tensor in saved.items())


def test_loaded_state_has_the_layout_of_its_parameter():
    """Resuming a channels-last convolution gave other weights: fused AdamW read the loaded moments in another order."""
    module = ToyTransformer()
    optimizers = build_optimizers(module, toy_config())
    module(torch.randn(4, 4)).square().sum().backward()
    optimizers[0].step()
    stored = {key: value.contiguous() for key, value in optimizer_tensors(optimizers).items()}
    fresh = build_optimizers(module, toy_config())
    load_optimizer_tensors(fresh, stored)
    weight = module.conv.weight
    assert weight.stride() != weight.contiguous().stride()
    for field in ("exp_avg", "exp_avg_sq"):
        assert fresh[0].state[weight][field].stride() == weight.stride()
        assert torch.equal(fresh[0].state[weight][field], optimizers[0].state[weight][field])


def test_overrides_read_text_as_the_fields_type():
    texts = ["lr=1e-3", "steps=2000", "compile=true", "betas=[0.8, 0.9]", "schedule=cosine", "clip=0"]
    config = override(TrainConfig(), parse_assignments(texts))
    assert (config.lr, config.steps, config.compile, config.betas) == (1e-3, 2000, True, (0.8, 0.9))
    assert (config.schedule, config.clip) == ("cosine", 0.0)
    assert isinstance(config.clip, float)
    assert TrainConfig.from_dict(config.to_dict()) == config


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lrr=1", "unknown config key 'lrr': choose one of batch_size, betas"),
        ("lr", "'lr' does not read as key=value"),
        ("lr=fast", "lr = 'fast' does not read as float"),
        ("steps=1.5", "steps = 1.5 does not read as int"),
        ("compile=1", "compile = 1 does not read as bool"),
        ("steps=0", "steps = 0 is not allowed: it must be at least 1"),
        ("lr=-1", "lr = -1.0 is not allowed: it must be above 0"),
        ("ema=1", r"ema = 1.0 is not allowed: it must be in \[0, 1\)"),
        ("schedule=linear", "schedule = 'linear' is not allowed: it must be one of wsd, cosine"),
        ("betas=[0.9]", r"betas = \(0.9,\) is not allowed"),
        ("lr=NaN", "lr = 'NaN' does not read as float"),
        ("lr=1e999", "lr = inf is not allowed: it must be a finite number"),
        ("betas=0.9", r"betas = 0.9 does not read as a list such as \[0.9, 0.95\]"),
        ('betas=[0.9, "a"]', r"betas = \(0.9, 'a'\) is not allowed: it must be two numbers in \[0, 1\)"),
    ],
)
def test_bad_settings_name_value_rule_and_remedy(text, message):
    with pytest.raises(ValueError, match=message):
        override(TrainConfig(), parse_assignments([text]))


def test_a_stage_may_add_fields():
    @dataclass(frozen=True, kw_only=True, slots=True)
    class ClipConfig(TrainConfig):
        clip_frames: int = 6

    config = override(ClipConfig(lr=0.5), {"clip_frames": "8"})
    assert (config.clip_frames, config.lr) == (8, 0.5)
    assert config.to_dict()["clip_frames"] == 8
