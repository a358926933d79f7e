"""Where a token stands: sinusoidal tables and rotary positions."""

import torch
from torch import Tensor

from shared.errors import CourseError


def sinusoidal_positions(context: int, width: int, base: float = 10000.0) -> Tensor:
    """Fixed position vectors: column 2i holds sin(t * base^(-2i/D)), column 2i+1 the cosine of the same angle.

    Returns a float tensor (T, D). Raises CourseError for an odd width.
    Source: "Attention Is All You Need" (Vaswani et al., 2017), section 3.5.
    """
    if width % 2:
        raise CourseError(f"width {width} is odd: sines and cosines come in pairs, choose an even width")
    positions = torch.arange(context, dtype=torch.float64)[:, None]  # (T, 1)
    frequencies = base ** (-torch.arange(0, width, 2, dtype=torch.float64) / width)  # (D/2,)
    angles = positions * frequencies  # (T, D/2)
    pairs = torch.stack((angles.sin(), angles.cos()), dim=-1)  # (T, D/2, 2)
    return pairs.reshape(context, width).float()  # (T, D)


def rotary_table(context: int, head_width: int, base: float = 10000.0) -> tuple[Tensor, Tensor]:
    """Cosines and sines of the angles t * base^(-2i/K) by which rotary positions turn a head's pair i at position t.

    Returns (cos, sin), each (T, K/2). Raises CourseError for an odd head width.
    Source: "RoFormer: Enhanced Transformer with Rotary Position Embedding" (Su et al., 2021), section 3.2.
    """
    if head_width % 2:
        raise CourseError(f"head width {head_width} is odd: rotary positions turn pairs, choose an even head width")
    frequencies = base ** (-torch.arange(0, head_width, 2, dtype=torch.float32) / head_width)  # (K/2,)
    angles = torch.arange(context, dtype=torch.float32)[:, None] * frequencies  # (T, K/2)
    return angles.cos(), angles.sin()


def apply_rotary(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn each pair (x_i, x_{i+K/2}) of every head by its position's angle; lengths of vectors stay as they were.

    x is (..., T, K); cos and sin are (T, K/2), or anything that broadcasts against (..., T, K/2). The pair is made of
    the head's two halves, as in the Llama family, where the paper pairs neighbours: the same up to a permutation.
    """
    first, second = x.chunk(2, dim=-1)  # (..., T, K/2) each
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)  # (..., T, K)
