"""GPT-2 in NumPy: the model, how it writes with a cache, and the one file that it is saved in.

The weights have the names and shapes of the PyTorch model's, so that either can load what the other has learnt.
"""

import json
import math
import secrets
import zipfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from shared.bare.nn import Block, Embedding, KVCache, LayerNorm, Module, dropout, linear
from shared.bare.tensor import Tensor, no_grad
from shared.errors import CourseError
from shared.files import write_atomically

POSITIONS = ("learned", "sinusoidal")


@dataclass(frozen=True)
class BareConfig:
    """Sizes of a GPT. `dropout` acts on the embedding, the attention weights and both residual branches."""

    vocab_size: int
    context: int
    n_layers: int
    n_heads: int
    width: int
    dropout: float = 0.0
    positions: str = "learned"

    def __post_init__(self) -> None:
        for name in ("vocab_size", "context", "n_layers", "n_heads", "width"):
            size = getattr(self, name)
            if not isinstance(size, int) or size < 1:
                raise CourseError(f"{name} is {size}: a model needs a whole number of at least 1")
        if self.width % self.n_heads:
            raise CourseError(f"width {self.width} cannot be split into {self.n_heads} equal heads: choose a multiple")
        if not 0 <= self.dropout < 1:
            raise CourseError(f"dropout is {self.dropout}: use 0 or a probability below 1")
        if self.positions not in POSITIONS:
            raise CourseError(f"positions {self.positions!r} is unknown: choose one of {', '.join(POSITIONS)}")
        if self.positions == "sinusoidal" and self.width % 2:
            raise CourseError(f"width {self.width} is odd: sines and cosines come in pairs, choose an even width")


def sinusoidal_positions(context: int, width: int, base: float = 10000.0) -> np.ndarray:
    """Fixed position vectors: column 2i holds sin(t * base^(-2i/D)), column 2i+1 the cosine of the same angle.

    Returns float64 (T, D). Source: "Attention Is All You Need" (Vaswani et al., 2017), section 3.5.
    """
    frequencies = base ** (-np.arange(0, width, 2) / width)  # (D/2,)
    angles = np.arange(context)[:, None] * frequencies  # (T, D/2)
    return np.stack([np.sin(angles), np.cos(angles)], axis=-1).reshape(context, width)  # (T, D)


def init_gpt_weights(parameters: dict[str, Tensor], n_layers: int, seed: int) -> None:
    """All of GPT-2's initialisation, in place: normal(0, 0.02), biases 0, norms the identity.

    Each layer adds twice to the residual stream, so what is added starts smaller by 1/sqrt(2L): the stream's variance
    at the top then does not depend on the depth.
    """
    rng = np.random.default_rng(seed)
    for name, tensor in parameters.items():
        if name.endswith("bias"):
            tensor.data[:] = 0
        elif "norm" in name:
            tensor.data[:] = 1
        else:
            std = 0.02 / math.sqrt(2 * n_layers) if name.endswith(("out.weight", "down.weight")) else 0.02
            tensor.data[:] = rng.normal(0, std, tensor.shape)


def check_ids(ids: np.ndarray, cache: KVCache | None, context: int) -> None:
    """CourseError unless ids is a batch of rows (B, T), T at least 1, that fits behind what the cache holds."""
    before = 0 if cache is None else cache.length
    room = context if cache is None else min(context, cache.capacity)
    if ids.ndim != 2 or ids.size == 0:
        raise CourseError(f"ids have shape {ids.shape}: pass a batch of rows, (B, T)")
    if before + ids.shape[1] > room:
        raise CourseError(f"{before} + {ids.shape[1]} tokens do not fit in a context of {room}: shorten the input")


class BareGPT(Module):
    """Token ids (B, T) -> logits (B, T, V): at every position, a score for each possible next token.

    The embedding serves as output layer too. Source: "Language Models are Unsupervised Multitask Learners" (Radford
    et al., 2019), section 2.3.
    """

    def __init__(self, config: BareConfig, seed: int = 0, dtype: Any = np.float32) -> None:
        self.config = config
        self.token_embedding = Embedding(config.vocab_size, config.width, dtype)
        if config.positions == "learned":
            self.position_embedding = Embedding(config.context, config.width, dtype)
        else:
            # Sines have a standard deviation of 1/sqrt(2) and the token embedding one of 0.02: bring both to one size.
            table = 0.02 * math.sqrt(2) * sinusoidal_positions(config.context, config.width)  # (T, D)
            self.position_table = table.astype(dtype)  # an array and not a tensor: nothing to learn
        self.blocks = [Block(config.width, config.n_heads, config.dropout, dtype) for _ in range(config.n_layers)]
        self.final_norm = LayerNorm(config.width, dtype)
        init_gpt_weights(self.parameters(), config.n_layers, seed)

    def forward(self, ids: np.ndarray, cache: KVCache | None = None, rng: np.random.Generator | None = None) -> Tensor:
        """rng: what dropout draws from, in training; without one there is no dropout."""
        ids = np.asarray(ids)
        check_ids(ids, cache, self.config.context)
        before = 0 if cache is None else cache.length
        positions = np.arange(before, before + ids.shape[1])  # (T,)
        if self.config.positions == "learned":
            x = self.token_embedding(ids) + self.position_embedding(positions)  # (B, T, D)
        else:
            x = self.token_embedding(ids) + self.position_table[positions]  # (B, T, D)
        x = dropout(x, self.config.dropout, rng)
        for layer, block in enumerate(self.blocks):
            x = block(x, cache, layer, None, rng)
        if cache is not None:
            cache.length += ids.shape[1]
        return linear(self.final_norm(x), self.token_embedding.weight)  # (B, T, V)

    def new_cache(self, capacity: int | None = None) -> KVCache:
        """An empty cache with room for `capacity` positions (default: the whole context)."""
        return KVCache(capacity or self.config.context)


def top_k_filter(logits: np.ndarray, k: int) -> np.ndarray:
    """Keep the k largest of the V logits (B, V), and any that tie with the k-th; the others become -inf.

    Source: "Hierarchical Neural Story Generation" (Fan et al., 2018), section 5.4.
    """
    kth_largest = np.sort(logits, axis=-1)[:, -min(k, logits.shape[-1]), None]  # (B, 1)
    return np.where(logits < kth_largest, -np.inf, logits)  # (B, V)


def top_p_filter(logits: np.ndarray, p: float) -> np.ndarray:
    """Keep the smallest set of most likely tokens whose probabilities reach p together; the others become -inf.

    logits (B, V). Source: "The Curious Case of Neural Text Degeneration" (Holtzman et al., 2019), section 3.1.
    """
    order = np.argsort(-logits, axis=-1, kind="stable")  # (B, V)
    ordered = np.take_along_axis(logits, order, axis=-1)
    probabilities = np.exp(ordered - ordered[:, :1])
    probabilities /= probabilities.sum(axis=-1, keepdims=True)
    before = probabilities.cumsum(axis=-1) - probabilities  # what the tokens ahead of each one hold together
    filtered = np.empty_like(logits)
    np.put_along_axis(filtered, order, np.where(before >= p, -np.inf, ordered), axis=-1)
    return filtered  # (B, V)


def sample(logits: np.ndarray, uniforms: np.ndarray) -> np.ndarray:
    """One token for each row by inverse transform: lay the probabilities end to end, see where the number falls.

    logits (B, V); uniforms (B,) in [0, 1). Returns ids (B,).
    """
    ends = np.exp(logits - logits.max(axis=-1, keepdims=True)).cumsum(axis=-1, dtype=np.float64)  # (B, V)
    points = uniforms[:, None] * ends[:, -1:]  # (B, 1)
    return np.minimum((ends <= points).sum(axis=-1), logits.shape[-1] - 1)  # (B,)


def uniform_numbers(seed: int, step: int, count: int) -> np.ndarray:
    """`count` independent numbers in [0, 1), a pure function of (seed, step), as float64 (count,).

    Source: "Parallel Random Numbers: As Easy as 1, 2, 3" (Salmon et al., 2011).
    """
    key = np.array([seed % 2**64, step], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key)).random(count)


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen. Temperature 0 takes the most likely one; top_k and top_p None keep everything."""

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < math.inf:
            raise CourseError(f"temperature {self.temperature} is out of range: use 0 (greedy) or a positive number")
        if self.top_k is not None and self.top_k < 1:
            raise CourseError(f"top_k {self.top_k} is out of range: keep at least 1 token")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise CourseError(f"top_p {self.top_p} is out of range: use a number above 0 and up to 1")


def choose_tokens(logits: np.ndarray, sampling: Sampling, seed: int, step: int) -> np.ndarray:
    """The next token of every row, (B, V) -> (B,). Each row draws its own random number."""
    if sampling.temperature == 0:
        return logits.argmax(axis=-1)  # (B,)
    # With the largest logit at 0, the smallest temperature cannot make the division overflow.
    logits = (logits - logits.max(axis=-1, keepdims=True)) / sampling.temperature
    if sampling.top_k is not None:
        logits = top_k_filter(logits, sampling.top_k)
    if sampling.top_p is not None and sampling.top_p < 1:
        logits = top_p_filter(logits, sampling.top_p)
    return sample(logits, uniform_numbers(seed, step, len(logits)))  # (B,)


def check_prompt(ids: np.ndarray, max_new_tokens: int, config: BareConfig) -> None:
    """CourseError for a prompt that the model cannot read."""
    if max_new_tokens < 0:
        raise CourseError(f"max_new_tokens is {max_new_tokens}: ask for 0 or more")
    if ids.ndim != 2 or ids.size == 0 or not np.issubdtype(ids.dtype, np.integer):
        raise CourseError(
            f"the prompt is {ids.dtype} {ids.shape}: give rows of ids (B, T) with at least one token each"
        )
    if ids.shape[1] > config.context:
        raise CourseError(f"the prompt has {ids.shape[1]} tokens, the model's context {config.context}: shorten it")
    if ids.min() < 0 or ids.max() >= config.vocab_size:
        raise CourseError(f"the prompt holds an id outside 0 to {config.vocab_size - 1}: another tokenizer's?")


def next_logits(model: BareGPT, ids: np.ndarray, start: int, cache: KVCache | None) -> np.ndarray:
    """Next-token logits (B, V) after ids (B, T), of which the model sees the columns from `start` on.

    With a cache, only what it has not seen yet is read.
    """
    seen = 0 if cache is None else cache.length
    with no_grad():
        return model(ids[:, start + seen :], cache).data[:, -1]  # (B, V)


def generate(
    model: BareGPT,
    ids: np.ndarray | Sequence[Sequence[int]],
    max_new_tokens: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    stop_tokens: Sequence[int] = (),
    seed: int | None = None,
    use_cache: bool = True,
) -> np.ndarray:
    """Continue each prompt by up to max_new_tokens tokens; return prompts and continuations, (B, T + n).

    ids (B, T): prompts of one length. A row that meets a stop token repeats it to the end, and n is smaller than
    max_new_tokens when all rows stop earlier. When the context is full, its last half is kept and read again. The same
    seed gives the same tokens; rows draw independently. Raises CourseError for an empty prompt, one longer than the
    context, an id that the model does not know, or a setting out of range.
    """
    ids = np.asarray(ids)
    context = model.config.context
    check_prompt(ids, max_new_tokens, model.config)
    sampling = Sampling(temperature, top_k, top_p)
    seed = secrets.randbits(63) if seed is None else seed
    start, cache = 0, model.new_cache() if use_cache else None
    stopped = np.zeros(len(ids), dtype=bool)  # (B,)
    for step in range(max_new_tokens):
        if ids.shape[1] - start > context:
            start = ids.shape[1] - max(1, context // 2)
            cache = model.new_cache() if use_cache else None  # positions have moved: what was kept is of no use
        tokens = choose_tokens(next_logits(model, ids, start, cache), sampling, seed, step)  # (B,)
        tokens = np.where(stopped, ids[:, -1], tokens)
        ids = np.concatenate([ids, tokens[:, None]], axis=1)  # (B, T + 1)
        stopped |= np.isin(tokens, list(stop_tokens))
        if stopped.all():
            break
    return ids  # (B, T + n)


FILE_FORMAT = "llm-by-hand bare GPT 1"


def save_bare(path: str | Path, model: BareGPT, tokenizer_text: str) -> None:
    """Write the weights, the sizes and the tokenizer's JSON into one .npz file: a zip of plain arrays, no pickle.

    A crash leaves the old file or the new one (`write_atomically`). CourseError when the place cannot be written to.
    """
    arrays = {f"weights/{name}": tensor.data for name, tensor in model.parameters().items()}
    arrays["head"] = text_to_array(json.dumps({"format": FILE_FORMAT, **asdict(model.config)}))
    arrays["tokenizer"] = text_to_array(tokenizer_text)
    write_atomically(path, lambda handle: np.savez(handle, **arrays))  # type: ignore[arg-type]


def text_to_array(text: str) -> np.ndarray:
    """The bytes of a text as an array (n,) of uint8, which an .npz file holds without pickle."""
    return np.frombuffer(text.encode("utf-8"), dtype=np.uint8)


def load_bare(path: str | Path) -> tuple[BareGPT, str]:
    """The model and the tokenizer's JSON from a file that `save_bare` wrote; CourseError for anything else."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
        head = json.loads(arrays.pop("head").tobytes())
        tokenizer_text = arrays.pop("tokenizer").tobytes().decode("utf-8")
        if head.pop("format") != FILE_FORMAT:
            raise ValueError("of another format")
        weights = {name.removeprefix("weights/"): array for name, array in arrays.items()}
        config = BareConfig(**head)
        check_head(config, weights)
        model = BareGPT(config, dtype=weights["token_embedding.weight"].dtype)
        load_weights(model, weights)
    except FileNotFoundError as error:
        raise CourseError(f"{path}: there is no such file; `python -m shared bare-train` writes one") from error
    except IsADirectoryError as error:
        raise CourseError(f"{path} is a folder: give the .npz file that bare-train wrote") from error
    except (
        OSError, EOFError, ValueError, KeyError, TypeError, AttributeError, MemoryError, RuntimeError,
        NotImplementedError, zipfile.BadZipFile,
    ) as error:  # fmt: skip
        reason = " ".join(str(error).split())
        raise CourseError(f"{path} is damaged or no file of bare-train ({reason}): train the model again") from error
    return model, tokenizer_text


def check_head(config: BareConfig, weights: dict[str, np.ndarray]) -> None:
    """CourseError unless the sizes are those of the arrays: nobody should wait for a model of a million layers."""
    sizes = [(config.vocab_size, config.width), weights["token_embedding.weight"].shape]
    if config.positions == "learned":
        sizes += [(config.context, config.width), weights["position_embedding.weight"].shape]
    layers = sum(name.endswith(".norm1.weight") for name in weights)
    if sizes[::2] != sizes[1::2] or config.n_layers != layers:
        raise CourseError("the sizes in its head are not those of its weights")


def load_weights(model: BareGPT, weights: dict[str, np.ndarray]) -> None:
    """Copy arrays into the model's weights; CourseError unless names, shapes and dtypes agree and all are finite."""
    parameters = model.parameters()
    if weights.keys() != parameters.keys():
        differing = sorted(weights.keys() ^ parameters.keys())
        raise CourseError(f"the weights do not fit this model: {', '.join(differing[:3])} on one side only")
    for name, tensor in parameters.items():
        array = weights[name]
        if array.shape != tensor.shape or array.dtype != tensor.dtype:
            expected = f"{tensor.dtype} {tensor.shape}"
            raise CourseError(f"{name} is {array.dtype} {array.shape} and this model needs {expected}")
        if not np.isfinite(array).all():
            raise CourseError(f"{name} holds values that are no numbers")
        tensor.data[:] = array
