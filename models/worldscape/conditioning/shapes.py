"""Where the size of a result may depend on what tensors hold."""

import torch
from torch import Tensor


def is_static(like: Tensor) -> bool:
    """Whether shapes must not depend on values: on a GPU, which would have to be waited for, and in compiled code."""
    return like.device.type != "cpu" or torch.compiler.is_compiling()
