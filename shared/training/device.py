"""What this machine computes with: which device, and whether bfloat16 is worth using on it."""

import ctypes
import sys
from contextlib import AbstractContextManager
from functools import lru_cache

import torch
from torch import nn

from shared.errors import CourseError


def best_device() -> torch.device:
    """A CUDA card where there is one, otherwise the processor."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def device_of(model: nn.Module) -> torch.device:
    """Where the model's parameters live."""
    return next(model.parameters()).device


@lru_cache
def native_bf16(device_type: str) -> bool:
    """Whether the device multiplies bfloat16 matrices in hardware.

    Processors with avx512_bf16 or AMX do, and then a training step takes about half the time. The others emulate it
    and become slower, so they keep float32. float16 is never used: on a processor it is about 100 times slower.
    """
    if device_type == "cuda":
        return torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    if device_type != "cpu":
        return False
    features = torch.cpu.get_capabilities()
    return bool(features.get("avx512_bf16") or features.get("amx_bf16"))


PRECISIONS = ("auto", "bf16", "fp32")


def autocast(device: torch.device, precision: str = "auto") -> AbstractContextManager:
    """Inside, matrix products run in bfloat16 ("bf16", or "auto" where the device has it) or in float32 ("fp32").

    The weights stay float32 either way. CourseError for another word.
    """
    if precision not in PRECISIONS:
        raise CourseError(f"precision {precision!r} is unknown: choose one of {', '.join(PRECISIONS)}")
    wanted = precision == "bf16" or (precision == "auto" and native_bf16(device.type))
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=wanted)


def keep_freed_memory() -> None:
    """On Linux, let the process keep the memory that it frees, for the next step will ask for the same again.

    The C library hands large freed blocks back to the system at once, and each page of a block that comes anew costs
    a page fault: 5 to 15 % of a training step on a processor. Elsewhere this does nothing.
    """
    if not sys.platform.startswith("linux"):
        return
    mmap_threshold, trim_threshold, top_pad = -3, -1, -2  # the parameters' numbers in malloc.h
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # a C library other than glibc
        return
    for parameter, size in ((mmap_threshold, 1 << 30), (trim_threshold, (1 << 31) - 1), (top_pad, 1 << 26)):
        mallopt(parameter, size)
