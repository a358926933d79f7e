"""A GPT of today behind GPT-2's interface: its norm, attention and feed-forward are parts that the config names."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from shared.errors import CourseError
from shared.model.attention import KVCache, RotaryAttention, window_mask
from shared.model.gpt import LanguageModel, check_length, check_sizes
from shared.model.layers import Block, ReLUSquared, RMSNorm, SwiGLU, WeightedRMSNorm, store_by_long_side
from shared.text.embeddings import rotary_table

NORMS: dict[str, Callable[[int], nn.Module]] = {"rms": RMSNorm, "weighted_rms": WeightedRMSNorm}
FEED_FORWARDS: dict[str, Callable[[int, int], nn.Module]] = {"relu_squared": ReLUSquared, "swiglu": SwiGLU}

# Four published designs as settings: ModernConfig(**sizes, **RECIPES["llama"]). The first is the default.
RECIPES: dict[str, dict] = {
    "nanochat": {"norm": "rms", "qk_norm": True, "feed_forward": "relu_squared", "norm_embedding": True},
    "llama": {"norm": "weighted_rms", "qk_norm": False, "feed_forward": "swiglu", "norm_embedding": False},
    "qwen3": {"norm": "weighted_rms", "qk_norm": True, "feed_forward": "swiglu", "norm_embedding": False},
    "mistral": {
        "norm": "weighted_rms",
        "qk_norm": False,
        "feed_forward": "swiglu",
        "norm_embedding": False,
        "window": 4096,
    },
}


@dataclass(frozen=True)
class ModernConfig:
    """Sizes and parts of a ModernGPT.

    `n_kv_heads` None means n_heads, `head_width` None means width / n_heads, `hidden` None means 4 * width, `window`
    None lets a token see everything before it.
    """

    vocab_size: int
    context: int
    n_layers: int
    n_heads: int
    width: int
    n_kv_heads: int | None = None
    head_width: int | None = None
    hidden: int | None = None
    norm: str = "rms"
    qk_norm: bool = True
    feed_forward: str = "relu_squared"
    norm_embedding: bool = True
    tied: bool = False
    softcap: float | None = None
    rotary_base: float = 10000.0
    window: int | None = None

    def __post_init__(self) -> None:
        check_sizes(self, "n_kv_heads", "head_width", "hidden", "window")
        for part, choices in ((self.norm, NORMS), (self.feed_forward, FEED_FORWARDS)):
            if part not in choices:
                raise CourseError(f"{part!r} is no part of this model: choose one of {', '.join(choices)}")
        if self.n_heads % self.key_heads:
            raise CourseError(f"{self.n_heads} heads cannot share {self.key_heads} key heads evenly: choose a divisor")
        if self.softcap is not None and not self.softcap > 0:
            raise CourseError(f"softcap is {self.softcap}: use a positive number, or None for no cap")
        if not self.rotary_base > 1:
            raise CourseError(f"rotary_base is {self.rotary_base}: use a number above 1, such as 10000")

    @property
    def key_heads(self) -> int:
        """How many heads the keys and values have."""
        return self.n_heads if self.n_kv_heads is None else self.n_kv_heads

    @property
    def columns_per_head(self) -> int:
        """How wide a head is: K."""
        return self.width // self.n_heads if self.head_width is None else self.head_width

    @property
    def hidden_width(self) -> int:
        """How many hidden units a feed-forward layer has."""
        return 4 * self.width if self.hidden is None else self.hidden


class ModernGPT(LanguageModel):
    """Token ids (B, T) -> logits (B, T, V), with rotary positions; the parts are those that the config names."""

    cos: Tensor
    sin: Tensor

    def __init__(self, config: ModernConfig) -> None:
        super().__init__()
        self.config = config
        make_norm = NORMS[config.norm]
        self.token_embedding = nn.Embedding(config.vocab_size, config.width)
        self.embedding_norm = make_norm(config.width) if config.norm_embedding else nn.Identity()
        self.blocks = nn.ModuleList(modern_block(config) for _ in range(config.n_layers))
        self.final_norm = make_norm(config.width)
        self.head = nn.Linear(config.width, config.vocab_size, bias=False)
        if config.tied:
            self.head.weight = self.token_embedding.weight
        store_by_long_side(self)
        cos, sin = rotary_table(config.context, config.columns_per_head, config.rotary_base)
        self.register_buffer("cos", cos, persistent=False)  # (context, K/2)
        self.register_buffer("sin", sin, persistent=False)  # (context, K/2)
        init_modern_weights(self)

    def forward(self, ids: Tensor, cache: KVCache | None = None) -> Tensor:
        tokens = check_length(ids, cache, self.config.context)
        start = 0 if cache is None else cache.length
        mask = visible_keys(tokens, cache, self.config.window, ids.device)
        # Scores depend on distances alone, so rows that were padded on the left need no positions of their own.
        rotary = (self.cos[start : start + tokens], self.sin[start : start + tokens])  # (T, K/2) each
        x = self.embedding_norm(self.token_embedding(ids))  # (B, T, D)
        for layer, block in enumerate(self.blocks):
            x = block(x, rotary, cache, layer, mask)
        if cache is not None:
            cache.length += tokens
        logits = self.head(self.final_norm(x))  # (B, T, V)
        return logits if self.config.softcap is None else soft_cap(logits, self.config.softcap)


def soft_cap(logits: Tensor, limit: float) -> Tensor:
    """Squeeze logits smoothly into (-limit, limit).

    Source: "Gemma 2: Improving Open Language Models at a Practical Size" (Gemma Team, 2024), section 2.
    """
    return limit * torch.tanh(logits / limit)


def visible_keys(tokens: int, cache: KVCache | None, window: int | None, device: torch.device) -> Tensor | None:
    """Which keys the next `tokens` queries may see by causality, padding and window: (T, Tk) or (B, 1, T, Tk).

    None when plain causality says it all: without a cache or a window, and while the text is no longer than the window.
    """
    mask = None if cache is None else cache.mask(tokens, device)
    keys = tokens if cache is None else cache.length + tokens
    if window is None or keys <= window:
        return mask
    narrow = window_mask(tokens, keys, window, device)  # (T, Tk)
    return narrow if mask is None else mask & narrow


def modern_block(config: ModernConfig) -> Block:
    """One layer of the stack, put together from the parts that the config names."""
    make_norm, width = NORMS[config.norm], config.width
    qk_norm = make_norm if config.qk_norm else None
    return Block(
        make_norm(width),
        RotaryAttention(width, config.n_heads, config.key_heads, qk_norm, config.head_width),
        make_norm(width),
        FEED_FORWARDS[config.feed_forward](width, config.hidden_width),
    )


def init_modern_weights(model: ModernGPT) -> None:
    """All of the initialisation in one place.

    Matrices keep the variance of what passes through them (uniform with standard deviation 1/sqrt(D)). What adds to
    the residual stream starts at zero: every block begins as the identity, and gradients reach all of them at once.
    """
    bound = math.sqrt(3 / model.config.width)  # a uniform on [-b, b] has the standard deviation b / sqrt(3)
    for name, parameter in model.named_parameters():
        if "norm" in name:
            nn.init.ones_(parameter)
        elif name.endswith(("out.weight", "down.weight")):
            nn.init.zeros_(parameter)
        elif name.startswith("token_embedding"):
            nn.init.normal_(parameter, std=0.02 if model.config.tied else 1.0)
        elif name.startswith("head"):
            nn.init.normal_(parameter, std=0.001)
        else:
            nn.init.uniform_(parameter, -bound, bound)
