"""The model of the new recipe: a small GPT with what speed runs have added since, every addition a switch.

It goes beyond what a transformers class expresses, so it lives here, with the bench, and not in `shared/model`. What it
adds to the parts of chapters 3 and 4:

    n-gram tables       the last 2, 3, 4 and 5 tokens, each read as one number, have rows in tables of their own, added
                        to the token's row. A table of single tokens knows what "h" is; these know "the ". Where there
                        are more sequences than rows, a hash lets them share. After "Byte Latent Transformer" (Pagnoni
                        et al., 2024), section 3.2.1, and the bigram tables of modded-nanogpt.
    value embeddings    in each layer a second table of tokens, added to the values of attention: what is handed on
                        need not pass through the stream. After modded-nanogpt (Jordan et al., 2024); the idea
                        is that of "Value Residual Learning" (Zhou et al., 2024).
    x0 skips            before every layer but the first, the stream is mixed with what the embeddings said. After
                        modded-nanogpt, "embed shortcut".
    logit soft-cap      "Gemma 2" (Gemma Team, 2024), section 2; off unless a number is given.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shared.errors import CourseError
from shared.model.attention import causal_attention, merge_heads, split_heads
from shared.model.gpt import LanguageModel, check_length, check_sizes
from shared.model.layers import rms_norm
from shared.model.modern import soft_cap
from shared.text.embeddings import apply_rotary, rotary_table


def layer_norm_without_weights(x: Tensor) -> Tensor:
    """Mean 0 and variance 1 at every position of x (..., D): one kernel, where `rms_norm` is a handful."""
    return F.layer_norm(x, (x.shape[-1],))


class SquaredReLU(torch.autograd.Function):
    """max(x, 0) squared, with the way back written by hand: it keeps one tensor, and two passes over it do."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:  # type: ignore[override]
        positive = F.relu(x)
        ctx.save_for_backward(positive)
        return positive * positive

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:  # type: ignore[override]
        (positive,) = ctx.saved_tensors
        return (gradient * positive).mul_(2)


def gelu(x: Tensor) -> Tensor:
    """GPT-2's activation."""
    return F.gelu(x, approximate="tanh")


NORMS: dict[str, Callable[[Tensor], Tensor]] = {"rms": rms_norm, "layer": layer_norm_without_weights}
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"relu_squared": SquaredReLU.apply, "gelu": gelu}
POSITIONS = ("rotary", "learned")

NgramTable = tuple[int, int]  # how many tokens it reads, how many rows it has


@dataclass(frozen=True)
class SpeedConfig:
    """Sizes and switches of a SpeedGPT. ngrams: one table for each (n, rows); with at least (V + 1)**n rows none is
    shared.
    """

    vocab_size: int
    context: int = 64
    n_layers: int = 4
    n_heads: int = 2
    width: int = 128
    ngrams: tuple[NgramTable, ...] = ((2, 4356), (3, 16384), (4, 32768), (5, 65536))
    norm: str = "layer"
    positions: str = "rotary"
    qk_norm: bool = True
    activation: str = "relu_squared"
    zero_init: bool = True
    tied: bool = False
    value_embeddings: bool = True
    x0_skips: bool = True
    softcap: float | None = None

    def __post_init__(self) -> None:
        check_sizes(self)
        for part, choices in ((self.norm, NORMS), (self.activation, ACTIVATIONS), (self.positions, POSITIONS)):
            if part not in choices:
                raise CourseError(f"{part!r} is no part of this model: choose one of {', '.join(choices)}")


def ngram_ids(ids: Tensor, n: int, rows: int, vocab_size: int) -> Tensor:
    """The row of each position's last n tokens in a table with so many rows: ids (B, T) give (B, T).

    The tokens are the digits of a number in the base V + 1; before the text stands the digit V. A number that has no
    row of its own is hashed: times a large odd constant, modulo a prime, modulo the rows (Knuth, "The Art of Computer
    Programming", volume 3, section 6.4). Nothing after a position is read.
    """
    base = vocab_size + 1
    number = ids
    for distance in range(1, n):
        before = F.pad(ids, (distance, 0), value=vocab_size)[:, : ids.shape[1]]  # (B, T)
        number = number * base + before
    return number if base**n <= rows else number * 2654435761 % (2**31 - 1) % rows


class SpeedBlock(nn.Module):
    """Attention and feed-forward layer with the switches of the config: (B, T, D) -> (B, T, D)."""

    def __init__(self, config: SpeedConfig) -> None:
        super().__init__()
        width = config.width
        self.config, self.normalise, self.activate = config, NORMS[config.norm], ACTIVATIONS[config.activation]
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.up = nn.Linear(width, 4 * width, bias=False)
        self.down = nn.Linear(4 * width, width, bias=False)
        self.value_embedding = nn.Embedding(config.vocab_size, width) if config.value_embeddings else None
        self.value_gain = nn.Parameter(torch.tensor(0.5)) if config.value_embeddings else None

    def forward(self, x: Tensor, ids: Tensor, rotary: tuple[Tensor, Tensor] | None) -> Tensor:
        x = x + self.attend(self.normalise(x), ids, rotary)
        return x + self.down(self.activate(self.up(self.normalise(x))))

    def attend(self, x: Tensor, ids: Tensor, rotary: tuple[Tensor, Tensor] | None) -> Tensor:
        """The attention of x (B, T, D), with the tokens' own values added."""
        heads = self.config.n_heads
        q, k, v = split_heads(self.qkv(x), 3 * heads).chunk(3, dim=1)  # (B, H, T, K) each
        if self.config.qk_norm:
            q, k = self.normalise(q), self.normalise(k)
        if rotary is not None:
            q, k = apply_rotary(q, *rotary), apply_rotary(k, *rotary)
        if self.value_embedding is not None:
            extra = self.value_gain * self.value_embedding(ids)  # (B, T, D)
            v = v + split_heads(extra.to(v.dtype), heads)
        return self.out(merge_heads(causal_attention(q, k, v)))  # (B, T, D)


class SpeedGPT(LanguageModel):
    """Token ids (B, T) -> logits (B, T, V). For training and measuring only: it has no cache."""

    cos: Tensor
    sin: Tensor

    def __init__(self, config: SpeedConfig) -> None:
        super().__init__()
        self.config = config
        self.token_embedding = nn.Embedding(config.vocab_size, config.width)
        self.ngram_tables = nn.ModuleList(nn.Embedding(rows, config.width, sparse=True) for _, rows in config.ngrams)
        learned = config.positions == "learned"
        self.position_embedding = nn.Embedding(config.context, config.width) if learned else None
        self.blocks = nn.ModuleList(SpeedBlock(config) for _ in range(config.n_layers))
        # of the stream and of the embeddings, before every layer but the first
        start = torch.tensor([[1.0, 0.0]]).repeat(config.n_layers - 1, 1)  # (L - 1, 2)
        self.skip_gains = nn.Parameter(start.flatten()) if config.x0_skips else None  # (2L - 2,)
        self.head = nn.Linear(config.width, config.vocab_size, bias=False)
        if config.tied:
            self.head.weight = self.token_embedding.weight
        cos, sin = rotary_table(config.context, config.width // config.n_heads)
        self.register_buffer("cos", cos, persistent=False)  # (context, K/2)
        self.register_buffer("sin", sin, persistent=False)  # (context, K/2)
        init_speed_weights(self)

    def forward(self, ids: Tensor, cache: None = None) -> Tensor:
        config, tokens = self.config, check_length(ids, None, self.config.context)
        normalise = NORMS[config.norm]
        x = self.embed(ids)  # (B, T, D)
        # Between the matrix products, too, bfloat16 where autocast is on: half as much memory to read and write.
        x = normalise(x.to(torch.get_autocast_dtype("cpu")) if torch.is_autocast_enabled("cpu") else x)
        tables = (self.cos[:tokens].to(x.dtype), self.sin[:tokens].to(x.dtype))  # (T, K/2) each
        rotary = tables if self.position_embedding is None else None
        first = x
        for layer, block in enumerate(self.blocks):
            if layer and self.skip_gains is not None:
                old, new = self.skip_gains[2 * layer - 2 : 2 * layer].to(x.dtype)
                x = old * x + new * first
            x = block(x, ids, rotary)
        logits = self.head(normalise(x))  # (B, T, V)
        return logits if config.softcap is None else soft_cap(logits.float(), config.softcap)

    def embed(self, ids: Tensor) -> Tensor:
        """What the tables know of each token and of those right before it: (B, T) -> (B, T, D)."""
        x = self.token_embedding(ids)  # (B, T, D)
        for table, (n, rows) in zip(self.ngram_tables, self.config.ngrams, strict=True):
            x = x + table(ngram_ids(ids, n, rows, self.config.vocab_size))
        if self.position_embedding is not None:
            x = x + self.position_embedding.weight[: ids.shape[1]]
        return x


def init_speed_weights(model: SpeedGPT) -> None:
    """As in `init_modern_weights`; the n-gram tables start at zero, so that a row without a text says nothing."""
    config = model.config
    bound = math.sqrt(3 / config.width)  # a uniform on [-b, b] has the standard deviation b / sqrt(3)
    for name, parameter in model.named_parameters():
        if "ngram_tables" in name or (config.zero_init and name.endswith(("out.weight", "down.weight"))):
            nn.init.zeros_(parameter)
        elif name.endswith(("token_embedding.weight", "position_embedding.weight")):
            nn.init.normal_(parameter, std=0.02 if config.tied else 1.0)
        elif "value_embedding" in name:
            nn.init.normal_(parameter, std=1.0)
        elif name.startswith("head"):
            nn.init.normal_(parameter, std=0.001)
        elif name.endswith(("out.weight", "down.weight")):
            nn.init.normal_(parameter, std=0.02)
        elif parameter.ndim == 2:
            nn.init.uniform_(parameter, -bound, bound)
