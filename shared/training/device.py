"""What this machine computes with: which device, and whether bfloat16 is worth using on it."""

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
