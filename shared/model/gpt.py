"""GPT-2 as published: learned positions, pre-norm blocks, GELU, the embedding reused as output layer."""

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shared.errors import CourseError
from shared.model.attention import KVCache, MultiHeadAttention
from shared.model.layers import Block, FeedForward, LayerNorm, store_by_long_side


def check_sizes(config: Any, *optional: str) -> None:
    """Raise CourseError unless every size is a whole number of at least 1 and the heads fit the width.

    The sizes named in `optional` may also be None.
    """
    for name in ("vocab_size", "context", "n_layers", "n_heads", "width", *optional):
        size = getattr(config, name)
        if not (size is None and name in optional) and (not isinstance(size, int) or size < 1):
            raise CourseError(f"{name} is {size}: a model needs a whole number of at least 1")
    if config.width % config.n_heads:
        raise CourseError(f"width {config.width} cannot be split into {config.n_heads} equal heads: choose a multiple")


@dataclass(frozen=True)
class GPTConfig:
    """Sizes of a GPT. `dropout` acts on the embedding, the attention weights and both residual branches."""

    vocab_size: int
    context: int
    n_layers: int
    n_heads: int
    width: int
    dropout: float = 0.0

    def __post_init__(self) -> None:
        check_sizes(self)
        if not 0 <= self.dropout < 1:
            raise CourseError(f"dropout is {self.dropout}: use 0 or a probability below 1")


def gpt_block(config: GPTConfig) -> Block:
    """One layer of the stack, put together from its four parts."""
    return Block(
        LayerNorm(config.width),
        MultiHeadAttention(config.width, config.n_heads, config.dropout),
        LayerNorm(config.width),
        FeedForward(config.width, config.dropout),
    )


def token_positions(tokens: int, cache: KVCache | None, device: torch.device) -> Tensor:
    """Where the next tokens stand: (T,), or (B, T), counted from each row's own start, when the cache has padding."""
    before = 0 if cache is None else cache.length
    columns = torch.arange(before, before + tokens, device=device)  # (T,)
    if cache is None or cache.starts is None:
        return columns
    return (columns - cache.starts[:, None]).clamp(min=0)  # (B, T)


def check_length(ids: Tensor, cache: KVCache | None, context: int) -> int:
    """The number of new tokens in ids (B, T). Raises CourseError when they do not fit behind what the cache holds."""
    before = 0 if cache is None else cache.length
    room = context if cache is None else min(context, cache.capacity)
    if ids.ndim != 2:
        raise CourseError(f"ids have shape {tuple(ids.shape)}: pass a batch of rows, (B, T)")
    if before + ids.shape[1] > room:
        raise CourseError(f"{before} + {ids.shape[1]} tokens do not fit in a context of {room}: shorten the input")
    return ids.shape[1]


class LanguageModel(nn.Module):
    """What every model of this folder offers: `config`, with at least vocab_size and context, `forward` from ids (B, T)
    and perhaps a cache to logits (B, T, V), and `new_cache`."""

    config: Any

    def new_cache(self, capacity: int | None = None) -> KVCache:
        """An empty cache with room for `capacity` positions (default: the whole context), for any number of rows."""
        return KVCache(capacity or self.config.context)


class GPT(LanguageModel):
    """Token ids (B, T) -> logits (B, T, V): at every position, a score for each possible next token.

    Source: "Language Models are Unsupervised Multitask Learners" (Radford et al., 2019), section 2.3.
    """

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.config = config
        self.token_embedding = nn.Embedding(config.vocab_size, config.width)
        self.position_embedding = nn.Embedding(config.context, config.width)
        self.dropout = nn.Dropout(config.dropout) if config.dropout else nn.Identity()
        self.blocks = nn.ModuleList(gpt_block(config) for _ in range(config.n_layers))
        self.final_norm = LayerNorm(config.width)
        store_by_long_side(self, self.token_embedding)  # the table is the output layer as well
        init_gpt_weights(self)

    def forward(self, ids: Tensor, cache: KVCache | None = None) -> Tensor:
        tokens = check_length(ids, cache, self.config.context)
        positions = token_positions(tokens, cache, ids.device)  # (T,), or (B, T) with padding
        mask = None if cache is None else cache.mask(tokens, ids.device)
        x = self.dropout(self.token_embedding(ids) + self.position_embedding(positions))  # (B, T, D)
        for layer, block in enumerate(self.blocks):
            x = block(x, cache, layer, mask)
        if cache is not None:
            cache.length += tokens
        return F.linear(self.final_norm(x), self.token_embedding.weight)  # (B, T, V)


def init_gpt_weights(model: GPT) -> None:
    """GPT-2's initialisation, all of it here: normal(0, 0.02), biases 0, norms the identity. (OpenAI drew the position
    table with 0.01; this one number is not worth a branch.)

    Each layer adds twice to the residual stream, so what is added starts smaller by 1/sqrt(2L): the stream's variance
    at the top then does not depend on the depth.
    """
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            nn.init.zeros_(parameter)
        elif "norm" in name:
            nn.init.ones_(parameter)
        elif name.endswith(("out.weight", "down.weight")):
            nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * model.config.n_layers))
        else:
            nn.init.normal_(parameter, std=0.02)


def count_parameters(config: GPTConfig) -> int:
    """How many numbers a GPT of these sizes learns, by formula: nothing is built.

    The output layer is the token table again and counts once. Of the published sizes the smallest has 124,439,808.
    """
    width = config.width
    tables = (config.vocab_size + config.context) * width
    attention = (3 * width * width + 3 * width) + (width * width + width)  # qkv and out, each a matrix and a bias
    feed_forward = (4 * width * width + 4 * width) + (4 * width * width + width)  # up and down
    norm = 2 * width
    return tables + config.n_layers * (attention + feed_forward + 2 * norm) + norm
