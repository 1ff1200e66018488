"""Linear maps of finished networks, their weights lying as matrix products read them."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LONG, BLOCK = 256, 128
"""Sums of more than LONG terms are added up in another order by Intel's BLAS where there are many rows (from 192 on, of
1024 terms): it gets them in blocks of so many, and a world's numbers do not depend on those beside it (steady.py)."""


class Linear(NamedTuple):
    """y = x @ weight + bias. At few rows that is twice as fast on a CPU as the transposed weight of nn.Linear."""

    weight: Tensor
    bias: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        x = x.to(self.weight.dtype)
        if x.device.type == "cpu" and len(x) > BLOCK and len(self.weight) > LONG:
            return torch.cat([torch.addmm(self.bias, rows, self.weight) for rows in x.split(BLOCK)])
        return torch.addmm(self.bias, x, self.weight)

    def then_silu(self, x: Tensor) -> Tensor:
        return F.silu(self(x))

    def then_gelu(self, x: Tensor) -> Tensor:
        return F.gelu(self(x), approximate="tanh")


class PackedLinear(NamedTuple):
    """The same in bf16 on a CPU, with a weight that lies as oneDNN reads it."""

    weight: Tensor
    bias: Tensor

    def __call__(self, x: Tensor, then: str = "none", how: str = "") -> Tensor:
        return torch.ops.mkldnn._linear_pointwise(x.to(torch.bfloat16), self.weight, self.bias, then, [], how)

    def then_silu(self, x: Tensor) -> Tensor:
        return self(x, "swish")

    def then_gelu(self, x: Tensor) -> Tensor:
        return self(x, "gelu", "tanh")


AnyLinear = Linear | PackedLinear


class Packer(NamedTuple):
    """Makes maps whose products are of one dtype."""

    dtype: torch.dtype

    def pack(self, weight: Tensor, bias: Tensor) -> AnyLinear:
        """The map of a weight [out, in] and a bias [out]."""
        weight, bias = weight.detach().to(self.dtype), bias.detach().to(self.dtype, copy=True)
        can_pack = hasattr(torch.ops.mkldnn, "_reorder_linear_weight") and torch.backends.mkldnn.is_available()
        if self.dtype == torch.bfloat16 and weight.device.type == "cpu" and can_pack:
            return PackedLinear(torch.ops.mkldnn._reorder_linear_weight(weight.contiguous()), bias)
        return Linear(weight.t().contiguous(), bias)

    def of(self, layer: nn.Module) -> AnyLinear:
        """The same map as the nn.Linear `layer`."""
        assert isinstance(layer, nn.Linear)
        return self.pack(layer.weight, layer.bias)
