"""From logits to text: filters, sampling, and decoding with or without a cache."""

import math
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from shared.errors import CourseError
from shared.model.attention import KVCache
from shared.model.gpt import LanguageModel


def apply_temperature(logits: Tensor, temperature: float) -> Tensor:
    """Logits (..., V) divided by the temperature: below 1 the likely tokens gain, above 1 the unlikely ones."""
    return logits / temperature


def top_k_filter(logits: Tensor, k: int) -> Tensor:
    """Keep the k largest of the V logits (..., V), and any that tie with the k-th; the others become -inf.

    A k above V keeps everything.
    Source: "Hierarchical Neural Story Generation" (Fan et al., 2018), section 5.4.
    """
    kth_largest = logits.topk(min(k, logits.shape[-1]), dim=-1).values[..., -1:]  # (..., 1)
    return logits.masked_fill(logits < kth_largest, -math.inf)


def top_p_filter(logits: Tensor, p: float) -> Tensor:
    """Keep the smallest set of most likely tokens whose probabilities reach p together; the others become -inf.

    logits (..., V). The most likely token always stays.
    Source: "The Curious Case of Neural Text Degeneration" (Holtzman et al., 2019), section 3.1.
    """
    ordered, order = logits.sort(dim=-1, descending=True)
    probabilities = ordered.softmax(dim=-1)
    before = probabilities.cumsum(dim=-1) - probabilities  # what the tokens ahead of each one hold together
    ordered = ordered.masked_fill(before >= p, -math.inf)
    return torch.empty_like(logits).scatter(-1, order, ordered)


def min_p_filter(logits: Tensor, p: float) -> Tensor:
    """Keep the tokens whose probability is at least p times the largest one; the others become -inf.

    logits (..., V), p above 0 and up to 1. The most likely token always stays.
    Source: "Turning Up the Heat: Min-p Sampling" (Nguyen et al., 2024), section 3.
    """
    limit = logits.amax(dim=-1, keepdim=True) + math.log(p)  # (..., 1): a product of probabilities is a sum of logits
    return logits.masked_fill(logits < limit, -math.inf)


def penalise_repetition(logits: Tensor, ids: Tensor, penalty: float) -> Tensor:
    """Make the tokens in ids less likely: their logits are divided by the penalty, negative ones multiplied.

    logits (B, V), ids (B, T). A penalty of 1 changes nothing; how often a token occurs does not matter.
    Source: "CTRL: A Conditional Transformer Language Model" (Keskar et al., 2019), section 4.1, which divides only.
    """
    written = torch.zeros_like(logits, dtype=torch.bool).scatter(-1, ids, True)  # (B, V)
    penalised = torch.where(logits > 0, logits / penalty, logits * penalty)  # (B, V)
    return torch.where(written, penalised, logits)


def sample(probabilities: Tensor, uniforms: Tensor) -> Tensor:
    """One token for each row by inverse transform: lay the probabilities end to end, see where the number falls.

    probabilities (B, V), not necessarily summing to 1; uniforms (B,) in [0, 1). Returns ids (B,).
    """
    ends = probabilities.double().cumsum(dim=-1)  # (B, V): where each token's stretch ends
    points = uniforms[:, None] * ends[:, -1:]  # (B, 1)
    tokens = torch.searchsorted(ends, points, right=True).squeeze(1)  # (B,)
    return tokens.clamp(max=probabilities.shape[1] - 1)


def uniform_numbers(seed: int, step: int, count: int) -> Tensor:
    """`count` independent numbers in [0, 1), a pure function of (seed, step), as float64 (count,).

    Philox encrypts a counter under the key (seed, step), so that there is no state to carry from step to step.
    Source: "Parallel Random Numbers: As Easy as 1, 2, 3" (Salmon et al., 2011).
    """
    key = np.array([seed % 2**64, step], dtype=np.uint64)
    return torch.from_numpy(np.random.Generator(np.random.Philox(key=key)).random(count))


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen. Temperature 0 takes the most likely one; None leaves a choice out."""

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < math.inf:
            raise CourseError(f"temperature {self.temperature} is out of range: use 0 (greedy) or a positive number")
        if self.top_k is not None and self.top_k < 1:
            raise CourseError(f"top_k {self.top_k} is out of range: keep at least 1 token")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise CourseError(f"top_p {self.top_p} is out of range: use a number above 0 and up to 1")
        if self.min_p is not None and not 0 < self.min_p <= 1:
            raise CourseError(f"min_p {self.min_p} is out of range: use a number above 0 and up to 1")
        if self.repetition_penalty is not None and not 0 < self.repetition_penalty < math.inf:
            raise CourseError(f"repetition_penalty {self.repetition_penalty} is out of range: use 1 or a little more")


def choose_tokens(logits: Tensor, sampling: Sampling, seed: int, step: int) -> Tensor:
    """The next token of every row, (B, V) -> (B,). Each row draws its own random number."""
    if sampling.temperature == 0:
        return logits.argmax(dim=-1)
    # With the largest logit at 0, the smallest temperature cannot make the division overflow.
    logits = logits.float() - logits.float().amax(dim=-1, keepdim=True)
    logits = apply_temperature(logits, sampling.temperature)
    if sampling.top_k is not None:
        logits = top_k_filter(logits, sampling.top_k)
    if sampling.top_p is not None and sampling.top_p < 1:
        logits = top_p_filter(logits, sampling.top_p)
    if sampling.min_p is not None:
        logits = min_p_filter(logits, sampling.min_p)
    uniforms = uniform_numbers(seed, step, logits.shape[0]).to(logits.device)
    return sample(logits.softmax(dim=-1), uniforms)


@dataclass
class Window:
    """What the model sees while it writes: of each row, the columns from its start to `length`.

    ids (B, columns) has room for the new tokens; shorter prompts are padded on the left.
    """

    ids: Tensor
    length: int
    starts: Tensor  # (B,): each row's first visible column
    cache: KVCache | None = None
    first: int = field(init=False)  # the smallest of starts

    def __post_init__(self) -> None:
        self.first = int(self.starts.min())

    def append(self, tokens: Tensor) -> None:
        """Write one new token (B,) behind each row."""
        self.ids[:, self.length] = tokens
        self.length += 1

    def visible(self) -> Tensor:
        """What the rows hold, (B, T). Columns that only a longer row has repeat the shorter row's newest token."""
        ids = self.ids[:, self.first : self.length]  # (B, T)
        columns = torch.arange(self.first, self.length, device=ids.device)  # (T,)
        return torch.where(columns >= self.starts[:, None], ids, ids[:, -1:])  # (B, T)


def open_window(prompts: Sequence[Sequence[int]], max_new_tokens: int, model: LanguageModel) -> Window:
    """Prompts padded on the left to one width, with room for what will be written."""
    device = next(model.parameters()).device
    longest = max(map(len, prompts))
    ids = torch.zeros(len(prompts), longest + max_new_tokens, dtype=torch.long, device=device)  # (B, T + n)
    for row, prompt in zip(ids, prompts, strict=True):
        row[longest - len(prompt) : longest] = torch.tensor(prompt, device=device)
    starts = torch.tensor([longest - len(prompt) for prompt in prompts], device=device)  # (B,)
    return Window(ids, longest, starts)


def slide(window: Window, context: int) -> None:
    """Where a row has outgrown the context, keep its last half; the cache must then be built anew."""
    if window.length - window.first <= context:
        return
    half = max(1, context // 2)
    outgrown = window.length - window.starts > context  # (B,)
    window.starts = window.starts.masked_fill(outgrown, window.length - half)  # (B,)
    window.first = int(window.starts.min())
    window.cache = None


def logits_from_cache(model: LanguageModel, window: Window) -> Tensor:
    """Next-token logits (B, V): the cache remembers the earlier columns, so only the newest one is read."""
    columns = window.ids[:, window.length - 1 : window.length]  # (B, 1)
    if window.cache is None:
        columns = window.ids[:, window.first : window.length]  # (B, T)
        window.cache = model.new_cache(min(model.config.context, window.ids.shape[1] - window.first))
        padding = window.starts - window.first  # (B,)
        window.cache.starts = padding if padding.any() else None
    return model(columns, window.cache)[:, -1]  # (B, V)


def logits_from_scratch(model: LanguageModel, window: Window) -> Tensor:
    """Next-token logits (B, V), every visible token read again: the specification of `logits_from_cache`."""
    if (window.starts == window.first).all():
        return model(window.ids[:, window.first : window.length])[:, -1]  # (B, V)
    rows = zip(window.ids, window.starts.tolist(), strict=True)
    return torch.cat([model(row[None, start : window.length])[:, -1] for row, start in rows])  # (B, V)


@contextmanager
def direct_access(model: nn.Module) -> Iterator[None]:
    """While the block lasts, every module of the model finds its parts and weights as plain attributes.

    PyTorch keeps them in tables of its own, and `self.norm1` gets there only after Python's own search has failed. That
    is nothing in training, but a tenth of the time in which a GPT-2 of 5 M parameters writes a token.
    """
    modules = list(model.modules())
    for module in modules:
        vars(module).update(module._parameters | module._modules)
    try:
        yield
    finally:
        for module in modules:
            for name in (*module._parameters, *module._modules):
                vars(module).pop(name, None)


def check_prompts(prompts: Sequence[Sequence[int]], max_new_tokens: int, model: LanguageModel) -> None:
    """Raise CourseError for a prompt that the model cannot read."""
    context, vocab_size = model.config.context, model.config.vocab_size
    if max_new_tokens < 0:
        raise CourseError(f"max_new_tokens is {max_new_tokens}: ask for 0 or more")
    if not prompts or not all(prompts):
        raise CourseError("the prompt is empty: give at least one token, such as the one that starts a text")
    if max(map(len, prompts)) > context:
        raise CourseError(f"the prompt has {max(map(len, prompts))} tokens, the model's context {context}: shorten it")
    if min(map(min, prompts)) < 0 or max(map(max, prompts)) >= vocab_size:
        raise CourseError(f"the prompt holds an id outside 0 to {vocab_size - 1}: was it encoded by another tokenizer?")


def write(
    model: LanguageModel,
    window: Window,
    max_new_tokens: int,
    sampling: Sampling,
    stop_tokens: Sequence[int],
    seed: int | None,
    use_cache: bool,
) -> Iterator[Tensor]:
    """Yield the next token of every row, (B,), until there are enough or every row has met a stop token.

    A row that has stopped repeats its stop token. To be called in inference mode.
    """
    next_logits = logits_from_cache if use_cache else logits_from_scratch
    seed = secrets.randbits(63) if seed is None else seed
    stops = torch.tensor(list(stop_tokens), dtype=torch.long, device=window.ids.device)  # (S,)
    stopped = torch.zeros(len(window.ids), dtype=torch.bool, device=window.ids.device)  # (B,)
    was_training = model.training
    model.eval()
    try:
        with direct_access(model):
            for step in range(max_new_tokens):
                slide(window, model.config.context)
                logits = next_logits(model, window)  # (B, V)
                if sampling.repetition_penalty is not None:
                    logits = penalise_repetition(logits, window.visible(), sampling.repetition_penalty)
                tokens = choose_tokens(logits, sampling, seed, step)  # (B,)
                if len(stops):
                    tokens = torch.where(stopped, window.ids[:, window.length - 1], tokens)
                    stopped |= torch.isin(tokens, stops)
                window.append(tokens)
                yield tokens
                if len(stops) and stopped.all():
                    return
    finally:
        model.train(was_training)


def generate(
    model: LanguageModel,
    ids: Tensor | Sequence[Sequence[int]],
    max_new_tokens: int,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    repetition_penalty: float | None = None,
    stop_tokens: Sequence[int] = (),
    seed: int | None = None,
    use_cache: bool = True,
) -> Tensor:
    """Continue each prompt by up to max_new_tokens tokens; return prompts and continuations, (B, T + n).

    ids is a tensor (B, T) or a list of prompts, not necessarily of one length: shorter ones get zeros on the left,
    which the model does not see, so every row comes out as it would alone. A row that meets a stop token repeats it
    to the end, and n is smaller than max_new_tokens when all rows stop earlier. When the context is full, its last
    half is kept and read again. The repetition penalty counts what the model sees, the prompt included. The same seed
    gives the same tokens; rows draw independently.
    Raises CourseError for an empty prompt, one longer than the context, or a setting out of range.
    """
    prompts = ids.tolist() if isinstance(ids, Tensor) else [list(row) for row in ids]
    check_prompts(prompts, max_new_tokens, model)
    window = open_window(prompts, max_new_tokens, model)
    sampling = Sampling(temperature, top_k, top_p, min_p, repetition_penalty)
    with torch.inference_mode():
        for _ in write(model, window, max_new_tokens, sampling, stop_tokens, seed, use_cache):
            pass
    return window.ids[:, : window.length]  # (B, T + n)


def stream(
    model: LanguageModel,
    ids: Sequence[int] | Tensor,
    max_new_tokens: int,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    repetition_penalty: float | None = None,
    stop_tokens: Sequence[int] = (),
    seed: int | None = None,
    use_cache: bool = True,
) -> Iterator[int]:
    """Continue one prompt, yielding each new token as it is chosen; a stop token comes last.

    The tokens are those that `generate` returns for the same arguments. ids is a list or a tensor (T,). Raises
    CourseError as `generate` does, at once.
    """
    prompts = [ids.tolist() if isinstance(ids, Tensor) else list(ids)]
    check_prompts(prompts, max_new_tokens, model)
    window = open_window(prompts, max_new_tokens, model)
    sampling = Sampling(temperature, top_k, top_p, min_p, repetition_penalty)
    slowly = torch.inference_mode()(write)  # in inference mode while it works, not while its caller does
    return map(int, slowly(model, window, max_new_tokens, sampling, stop_tokens, seed, use_cache))
