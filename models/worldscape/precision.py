"""In which precision a finished world's networks compute: full (fp32), or half (bf16) in twice the speed."""

import torch

PRECISIONS = ("auto", "fp32", "bf16")


def choose_dtype(precision: str, device: torch.device) -> torch.dtype:
    """One of PRECISIONS -> what weights and the inputs of matrix products are kept in.

    "auto" is bf16 on a CPU or GPU that multiplies it natively, else fp32. Raises ValueError for anything else.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision={precision!r} is unknown; choose one of {', '.join(PRECISIONS)}.")
    if precision == "auto":
        precision = "bf16" if has_native_bf16(device) else "fp32"
    return torch.bfloat16 if precision == "bf16" else torch.float32


def has_native_bf16(device: torch.device | None = None) -> bool:
    """Whether this processor (or the GPU `device`) multiplies bf16; others make fp32 of it first, which is slower than
    fp32 itself."""
    if device is not None and device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    knows = getattr(torch.cpu, "_is_avx512_bf16_supported", None)  # no public function tells
    return bool(knows is not None and knows() and torch.backends.mkldnn.is_available())
