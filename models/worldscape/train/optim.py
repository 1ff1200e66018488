"""Schedules as pure functions of the step, the averaged weights, and which optimiser takes which parameter."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from worldscape.train.config import TrainConfig


def lr_at(config: TrainConfig, step: int, seconds: float = 0.0) -> float:
    """Learning rate of optimiser step `step` (0 is the first, config.steps - 1 the last), so many seconds into the run.

    Warm-up: lr * (step + 1) / warmup, or less where the run ends before. "wsd": flat, then linear over the last
    decay_fraction of the run.
    "cosine": half a cosine after the warm-up. Both would reach 0 at the run's end, which is step = config.steps or,
    where that comes first, the end of config.lease.
    """
    rise = min((step + 1) / config.warmup, 1.0) if config.warmup else 1.0
    spent = lease_spent(config, seconds)
    if config.schedule == "cosine":
        progress = max((step - config.warmup) / max(config.steps - config.warmup, 1), spent, 0.0)
        return config.lr * min(rise, 0.5 * (1 + math.cos(math.pi * min(progress, 1.0))))
    left = max(1.0 - max(step / config.steps, spent), 0.0)
    return config.lr * min(rise, 1.0 if left >= config.decay_fraction else left / config.decay_fraction)


def lease_spent(config: TrainConfig, seconds: float) -> float:
    """Share of config.lease that is over after so many seconds of training; 0 without one."""
    return seconds / (60 * config.lease) if config.lease else 0.0


def ema_decay_at(config: TrainConfig, step: int) -> float:
    """Decay of the averaged weights after optimiser step `step`: min(ema, (1 + step) / (10 + step))."""
    return min(config.ema, (1 + step) / (10 + step))


@torch.no_grad()
def update_ema(average: nn.Module, module: nn.Module, decay: float) -> None:
    """average <- decay * average + (1 - decay) * module for parameters; buffers are copied. In place."""
    get_ema_multi_avg_fn(decay)([*average.parameters()], [*module.parameters()], 0)
    for mean, value in zip(average.buffers(), module.buffers(), strict=True):
        mean.copy_(value)


class ParameterSplit(NamedTuple):
    """Names of the parameters by treatment; the three lists are disjoint and cover the module."""

    muon: list[str]  # linear layers and convolutions inside repeated blocks (an nn.ModuleList)
    decayed: list[str]  # AdamW with weight decay: the others
    plain: list[str]  # AdamW without: norms, biases, embeddings, scalars


def split_parameters(module: nn.Module, use_muon: bool) -> ParameterSplit:
    """Which parameter goes where. Input and output projections lie outside the blocks, so AdamW takes them."""
    split = ParameterSplit([], [], [])
    hidden = _block_matrices(module) if use_muon else set()
    embeddings = {id(m.weight) for m in module.modules() if isinstance(m, nn.Embedding)}
    for name, parameter in module.named_parameters():
        if id(parameter) in hidden:
            split.muon.append(name)
        elif parameter.ndim >= 2 and id(parameter) not in embeddings:
            split.decayed.append(name)
        else:
            split.plain.append(name)
    return split


def _block_matrices(module: nn.Module) -> set[int]:
    stacks = [m for m in module.modules() if isinstance(m, nn.ModuleList)]
    layers = [m for stack in stacks for m in stack.modules() if isinstance(m, (nn.Linear, nn.Conv2d))]
    return {id(layer.weight) for layer in layers}


def build_optimizers(module: nn.Module, config: TrainConfig) -> list[torch.optim.Optimizer]:
    """[AdamW] or [AdamW, Muon] over the parameters of `module`.

    Muon's updates are scaled to AdamW's root mean square, so one learning rate serves both.
    Raises ValueError when Muon is asked for and this torch or this module has no use for it.
    """
    split = split_parameters(module, use_muon=config.optimizer == "muon")
    named = dict(module.named_parameters())
    groups = [
        {"params": [named[name] for name in split.decayed], "weight_decay": config.weight_decay},
        {"params": [named[name] for name in split.plain], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    adamw = [torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, fused=True)] if groups else []
    if config.optimizer != "muon":
        return [*adamw]
    return [*adamw, _build_muon([named[name] for name in split.muon], config)]


def _build_muon(weights: list[nn.Parameter], config: TrainConfig) -> torch.optim.Optimizer:
    if not hasattr(torch.optim, "Muon"):
        raise ValueError(f"optimizer 'muon' needs torch 2.9 or newer, not {torch.__version__}: use optimizer=adamw")
    if not weights:
        raise ValueError("optimizer 'muon' found no layers in an nn.ModuleList of blocks: use optimizer=adamw")
    matrices = [nn.Parameter(as_matrix(weight.detach(), weight)) for weight in weights]
    settings = {"lr": config.lr, "weight_decay": config.weight_decay, "adjust_lr_fn": "match_rms_adamw"}
    muon = torch.optim.Muon(matrices, **settings)
    muon.register_step_pre_hook(lambda *_: _lend_gradients(weights, matrices))
    muon.register_step_post_hook(lambda *_: _clear_gradients([*weights, *matrices]))
    return muon


def as_matrix(values: Tensor, weight: Tensor) -> Tensor:
    """The weight of a layer, or its gradient, as a matrix: one row an output channel; a view of what is laid out as
    `weight` is, so that steps on the matrix move the weight."""
    if weight.ndim == 4 and weight.is_contiguous(memory_format=torch.channels_last):
        return values.permute(0, 2, 3, 1).flatten(1)
    return values.flatten(1)


def _lend_gradients(weights: list[nn.Parameter], matrices: list[nn.Parameter]) -> None:
    for weight, matrix in zip(weights, matrices, strict=True):
        assert weight.data_ptr() == matrix.data_ptr(), "a weight was moved after its optimiser was made"
        matrix.grad = None if weight.grad is None else as_matrix(weight.grad, weight)


def _clear_gradients(parameters: list[nn.Parameter]) -> None:
    """zero_grad of the optimiser only knows its matrices."""
    for parameter in parameters:
        parameter.grad = None


def set_lr(optimizers: list[torch.optim.Optimizer], lr: float) -> None:
    """Give every parameter group this learning rate, in place."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = lr


def optimizer_tensors(optimizers: list[torch.optim.Optimizer]) -> dict[str, Tensor]:
    """All optimiser state as named tensors "optimizer.parameter.field", ready for safetensors."""
    named = {}
    for index, optimizer in enumerate(optimizers):
        for parameter, state in optimizer.state_dict()["state"].items():
            for field, value in state.items():
                assert isinstance(value, Tensor), f"optimiser state {field!r} is not a tensor"
                named[f"{index}.{parameter}.{field}"] = value
    return named


def load_optimizer_tensors(optimizers: list[torch.optim.Optimizer], named: dict[str, Tensor]) -> None:
    """The inverse of optimizer_tensors, in place; the groups' settings stay those of the present config."""
    states: list[dict[int, dict[str, Tensor]]] = [{} for _ in optimizers]
    for key, value in named.items():
        index, parameter, field = key.split(".")
        states[int(index)].setdefault(int(parameter), {})[field] = value
    for optimizer, state in zip(optimizers, states, strict=True):
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
        _match_layout(optimizer)


def _match_layout(optimizer: torch.optim.Optimizer) -> None:
    """Give state the memory layout of its parameter: fused AdamW walks both by address, not by index."""
    for parameter, state in optimizer.state.items():
        for field, value in state.items():
            if value.shape == parameter.shape and value.stride() != parameter.stride():
                state[field] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
