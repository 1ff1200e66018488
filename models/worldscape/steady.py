"""Layers that give a row of a batch the same numbers, to the last bit, whatever stands beside it: on a CPU, without
gradients. A world is to dream the same alone as beside others, and dreams make large differences of small ones.

PyTorch's own differ: BLAS has other kernels for few rows than for many, sigmoids are computed by other instructions at
the end of a tensor, in what is left over after whole vectors, than before it, and small pictures are convolved by
oneDNN only where there are several.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ROWS = 16
"""BLAS sees multiples of so many rows."""


class Linear(nn.Linear):
    """nn.Linear with a bias."""

    def forward(self, input: Tensor) -> Tensor:
        if _is_usual(input):
            return super().forward(input)
        rows = input.reshape(-1, self.in_features)
        padded = F.pad(rows, (0, 0, 0, -len(rows) % ROWS))
        return torch.addmm(self.bias, padded, self.weight.t())[: len(rows)].view(*input.shape[:-1], self.out_features)


class Conv2d(nn.Conv2d):
    """nn.Conv2d, one picture after the other."""

    def forward(self, input: Tensor) -> Tensor:
        if _is_usual(input):
            return super().forward(input)
        return torch.cat([super(Conv2d, self).forward(picture) for picture in input.split(1)])


class SiLU(nn.Module):
    """nn.SiLU."""

    def forward(self, input: Tensor) -> Tensor:
        return F.silu(input) if _is_usual(input) else input * sigmoid(input)


def sigmoid(x: Tensor) -> Tensor:
    """torch.sigmoid."""
    return torch.sigmoid(x) if _is_usual(x) else 1.0 / (1.0 + (-x).exp())


def _is_usual(x: Tensor) -> bool:
    """Whether PyTorch's own will do: where something learns, and on other devices than a CPU."""
    return torch.is_grad_enabled() or x.device.type != "cpu"
