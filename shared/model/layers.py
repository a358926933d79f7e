"""What a transformer block is made of besides attention: norms, activations, feed-forward layers."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float = 1e-5) -> Tensor:
    """Shift and scale every position's vector to mean 0 and variance 1, then by a learned weight and bias.

    x (..., D), weight and bias (D,). Source: "Layer Normalization" (Ba et al., 2016), section 3.
    """
    centred = x - x.mean(dim=-1, keepdim=True)
    variance = centred.square().mean(dim=-1, keepdim=True)  # (..., 1), divided by D, not D - 1
    return centred * torch.rsqrt(variance + eps) * weight + bias


class LayerNorm(nn.Module):
    """`layer_norm` with its learned weight and bias."""

    def __init__(self, width: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps, self.shape = eps, (width,)
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        # PyTorch's one kernel in place of our six: a seventh of the time, forward and backward.
        return torch.layer_norm(x, self.shape, self.weight, self.bias, self.eps)


def rms_norm(x: Tensor, eps: float = 1e-6) -> Tensor:
    """Scale every position's vector (..., D) so that the mean of its squares is 1; nothing is learned.

    On a processor PyTorch's own `rms_norm` is no faster. Source: "Root Mean Square Layer Normalization" (Zhang and
    Sennrich, 2019), section 3.
    """
    return x * torch.rsqrt(x.square().mean(dim=-1, keepdim=True) + eps)


class RMSNorm(nn.Module):
    """`rms_norm` without a weight."""

    def __init__(self, width: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.eps)


class WeightedRMSNorm(nn.Module):
    """`rms_norm` followed by a learned weight for each column."""

    def __init__(self, width: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.eps) * self.weight


def gelu_tanh(x: Tensor) -> Tensor:
    """x times the chance that a standard normal number lies below x, by GPT-2's tanh approximation.

    Source: "Gaussian Error Linear Units" (Hendrycks and Gimpel, 2016), section 2.
    """
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def relu_squared(x: Tensor) -> Tensor:
    """max(x, 0) squared. Source: "Primer: Searching for Efficient Transformers" (So et al., 2021), section 3.1."""
    return F.relu(x).square()


def silu(x: Tensor) -> Tensor:
    """x times the logistic function of x, also called swish.

    Source: "Gaussian Error Linear Units" (Hendrycks and Gimpel, 2016), section 2.
    """
    return x * torch.sigmoid(x)


class FeedForward(nn.Module):
    """GPT-2's feed-forward layer: four times wider, GELU, and back. (B, T, D) -> (B, T, D)."""

    def __init__(self, width: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.gelu(self.up(x), approximate="tanh")  # (B, T, 4D); `gelu_tanh` takes more than twice as long
        return self.dropout(self.down(hidden))  # (B, T, D)


class ReLUSquared(nn.Module):
    """Feed-forward layer with squared ReLU: (B, T, D) -> (B, T, D)."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.up = nn.Linear(width, hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(relu_squared(self.up(x)))  # (B, T, D)


class SwiGLU(nn.Module):
    """Feed-forward layer in which one half of the hidden units gates the other: (B, T, D) -> (B, T, D).

    Source: "GLU Variants Improve Transformer" (Shazeer, 2020), section 2.
    """

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.up = nn.Linear(width, 2 * hidden, bias=False)  # gate and value in one matrix product
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.up(x).chunk(2, dim=-1)  # (B, T, hidden) each
        return self.down(F.silu(gate) * value)  # (B, T, D); `silu` takes twice as long as PyTorch's


class Block(nn.Module):
    """Pre-norm transformer block: x + attention(norm(x)), then x + feed_forward(norm(x)). (B, T, D) -> (B, T, D).

    Its four parts are passed in. What attention needs besides x (cache, mask, rotary table) goes through untouched.
    Source: "Language Models are Unsupervised Multitask Learners" (Radford et al., 2019), section 2.3.
    """

    def __init__(self, norm1: nn.Module, attention: nn.Module, norm2: nn.Module, feed_forward: nn.Module) -> None:
        super().__init__()
        self.norm1, self.attention, self.norm2, self.feed_forward = norm1, attention, norm2, feed_forward

    def forward(self, x: Tensor, *context: object) -> Tensor:
        x = x + self.attention(self.norm1(x), *context)
        return x + self.feed_forward(self.norm2(x))


def store_by_long_side(model: nn.Module, *tables: nn.Embedding) -> None:
    """Lay every matrix (out, in) of a model out in memory along its longer side; shapes and values stay as they are.

    To multiply a single token, a processor has to read each matrix once, and it does so faster in long stretches: a
    GPT-2 of 5 M parameters writes 1.2 to 1.3 times as fast. In training, with thousands of tokens at once, nothing
    changes. A square matrix goes by column. `tables` are embeddings that are multiplied with too.
    """
    for module in model.modules():
        if isinstance(module, nn.Linear) or module in tables:
            matrix = module.weight.data
            is_tall = matrix.shape[0] >= matrix.shape[1]
            module.weight.data = matrix.T.contiguous().T if is_tall else matrix.contiguous()
