"""In which precision a finished world's networks compute: full (fp32), or half (bf16) where that is faster."""

from functools import lru_cache
from pathlib import Path

import torch

PRECISIONS = ("auto", "fp32", "bf16")


def choose_dtype(precision: str, device: torch.device) -> torch.dtype:
    """One of PRECISIONS -> what weights and the inputs of matrix products are kept in.

    "auto" is bf16 on a CPU or GPU that is faster in it, else fp32: always the same on the same machine, since a seed
    means another dream in the other. Raises ValueError for anything else.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision={precision!r} is unknown; choose one of {', '.join(PRECISIONS)}.")
    if precision == "auto":
        precision = "bf16" if has_fast_bf16(device) else "fp32"
    return torch.bfloat16 if precision == "bf16" else torch.float32


def has_fast_bf16(device: torch.device) -> bool:
    """Whether this device multiplies bf16 faster than fp32: GPUs from Ampere on, and CPUs with tiles for it (AMX) or,
    unless they are Intel's, vectors of it. Intel's multiply vectors of bf16 at the rate of fp32 and lose the time that
    converting takes; processors that know no bf16 make fp32 of it first."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    return _cpu_says("_is_amx_tile_supported") or (
        _cpu_says("_is_avx512_bf16_supported") and "GenuineIntel" not in cpu_vendor()
    )


def _cpu_says(name: str) -> bool:
    known = getattr(torch.cpu, name, None)  # no public function tells
    return bool(known is not None and known())


@lru_cache(maxsize=1)
def cpu_vendor() -> str:
    """The processor's maker as Linux reports it; "GenuineIntel", the careful guess, where nothing does."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("vendor_id")), "GenuineIntel")
