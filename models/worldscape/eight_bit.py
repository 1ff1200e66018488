"""Weights in 8 bits: whole numbers from -127 to 127 and one scale a row, for files of half the size.

A row is what makes one output of a layer: the first dimension. Vectors (biases, gains of norms) stay as they are.
Scales have four significant bits, so that what is read back fits into float16 exactly, and packing it once more gives
the same bytes: a part that nobody trained stays the same file. Symmetric, per channel, as in Krishnamoorthi 2018,
https://arxiv.org/abs/1806.08342; the scale is the one that errs least, clipping included.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

SCALE = ".scale"
"""Ends the name of a tensor of scales, beside the tensor that they scale."""
LIMIT = 127
CANDIDATES = range(-5, 2)
"""Scales that are tried for a row, in steps from the least that clips nothing."""
_MANTISSAS = 8  # a scale is (8 to 15) / 8 * 2^n: four significant bits
_LEAST = -21 * _MANTISSAS  # 2^-21; its smallest multiples are float16's


def pack(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors on the CPU -> those of a file: int8 with scales for matrices and kernels, others unchanged.

    int8 has the tensor's shape; scales, float16 [rows], lie at NAME.scale.
    """
    packed: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and tensor.ndim > 1:
            # Twice: the scales found for values that are already rounded stay what they are.
            rounded = _expand(*_round(tensor))
            packed[name], packed[name + SCALE] = _round(rounded)
        else:
            packed[name] = tensor
    return packed


def unpack(packed: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What pack made -> tensors by name, float32 where they were packed; files that are not packed stay as they are.

    Raises ValueError for int8 without fitting scales.
    """
    tensors = {}
    for name, tensor in packed.items():
        if tensor.dtype == torch.int8:
            scale = packed.get(name + SCALE)
            if tensor.ndim < 2 or scale is None or not scale.is_floating_point() or scale.shape != tensor.shape[:1]:
                raise ValueError(f"{name} has no scale for each row")
            tensors[name] = _expand(tensor, scale)
        elif not (name.endswith(SCALE) and packed.get(name.removesuffix(SCALE), tensor).dtype == torch.int8):
            tensors[name] = tensor
    return tensors


def _round(tensor: Tensor) -> tuple[Tensor, Tensor]:
    """-> int8 and float16 scales [rows], of least squared error among CANDIDATES; the larger scale where two tie."""
    rows = tensor.float().flatten(1)
    least = _step_above(rows.abs().amax(1) / (LIMIT + 0.5))
    best = torch.full_like(rows[:, 0], torch.inf)
    values, scale = torch.zeros_like(rows), torch.ones_like(best)
    for offset in reversed(CANDIDATES):
        tried = _scale_of((least + offset).clamp(min=_LEAST))
        whole = (rows / tried[:, None]).round().clamp(-LIMIT, LIMIT)
        error = (rows - whole * tried[:, None]).square().sum(1)
        # A scale larger than need be only for rows that it was the scale of.
        is_better = (error < best) & ((error == 0) | (offset < 1))
        best = torch.where(is_better, error, best)
        values, scale = torch.where(is_better[:, None], whole, values), torch.where(is_better, tried, scale)
    return values.to(torch.int8).reshape(tensor.shape), scale.half()


def _expand(values: Tensor, scale: Tensor) -> Tensor:
    """int8 and scales -> float32, each of them a float16 as well."""
    return values.float() * scale.float().reshape(-1, *[1] * (values.ndim - 1))


def _step_above(size: Tensor) -> Tensor:
    """Number of the least scale that is not below `size`; scales are numbered by size."""
    mantissa, exponent = torch.frexp(size)
    return exponent * _MANTISSAS + (mantissa * 2 * _MANTISSAS).ceil().int() - 2 * _MANTISSAS


def _scale_of(step: Tensor) -> Tensor:
    """Inverse of _step_above."""
    octave = torch.div(step, _MANTISSAS, rounding_mode="floor")
    return torch.ldexp(1 + (step - octave * _MANTISSAS) / _MANTISSAS, octave)
