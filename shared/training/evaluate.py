"""How good is a model: losses, their units, and honest baselines from counting and from compressors."""

import gzip
import lzma
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from shared.errors import CourseError
from shared.text.loader import IGNORE_INDEX, Piece, cut_documents
from shared.training.device import autocast, device_of


def cross_entropy(logits: Tensor, targets: Tensor, reduction: str = "mean") -> Tensor:
    """-ln p(target) in nats, where p is the softmax of the logits over the vocabulary.

    logits: (..., V); targets: (...) int64, IGNORE_INDEX where nothing is predicted (0 loss, not counted).
    reduction: "none" gives (...), "sum" and "mean" (over what is not ignored) give (). For the softmax of z,
    ln p_i = z_i - ln(sum_j exp z_j): `log_softmax` computes it without forming the small number p, which may underflow.
    """
    if reduction not in ("none", "sum", "mean"):
        raise ValueError(f"reduction {reduction!r} is unknown: choose none, sum or mean")
    logits = logits.float()  # bfloat16 has 8 significant bits: too few to add up thousands of terms
    wanted = targets != IGNORE_INDEX  # (...)
    index = targets.masked_fill(~wanted, 0).unsqueeze(-1)  # (..., 1)
    losses = -torch.log_softmax(logits, dim=-1).gather(-1, index).squeeze(-1)  # (...)
    losses = losses.masked_fill(~wanted, 0.0)
    if reduction == "none":
        return losses
    return losses.sum() if reduction == "sum" else losses.sum() / wanted.sum()


def perplexity(nats_per_token: float) -> float:
    """Among how many equally likely tokens the model would be as unsure: e to the loss."""
    return math.exp(nats_per_token)


def bits_per_byte(nats: float, n_bytes: int) -> float:
    """The total loss of a text in bits per byte of its UTF-8: comparable between any two tokenizers."""
    return nats / math.log(2) / n_bytes


def entropy_floor(log_probabilities: Sequence[float], token_counts: Sequence[int]) -> float:
    """The least mean loss that any model can have: nats per token.

    log_probabilities: the true ln p of each text; token_counts: how many tokens of each a model has to predict, its
    end token included (ln p is of the whole text, and that it ends is part of it).
    """
    return -math.fsum(log_probabilities) / sum(token_counts)


@dataclass(frozen=True)
class NgramCounts:
    """How often each sequence of k tokens occurred, and how often its first k - 1, all as sorted numbers.

    A sequence is one number, written in the base W = V + 1. ends[i] is the sum of counts up to and with keys[i].
    """

    base: int
    keys: np.ndarray  # (n,) int64
    ends: np.ndarray  # (n,) int64

    def occurrences(self, low: np.ndarray, high: np.ndarray) -> np.ndarray:
        """How often a sequence whose number is in [low, high) occurred."""
        ends = np.concatenate([[0], self.ends])
        return ends[np.searchsorted(self.keys, high)] - ends[np.searchsorted(self.keys, low)]

    def of_context(self, contexts: np.ndarray) -> np.ndarray:
        """How often each context was followed by anything."""
        return self.occurrences(contexts * self.base, (contexts + 1) * self.base)

    def frequency(self, contexts: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        """Among the occurrences of each context, the share that continued with the token; 0 where there is none."""
        keys = contexts * self.base + tokens
        return self.occurrences(keys, keys + 1) / np.maximum(1, self.of_context(contexts))


def count_ngrams(contexts: np.ndarray, tokens: np.ndarray, base: int) -> NgramCounts:
    """Count (context, token) pairs: two (N,) int64 arrays."""
    keys, counts = np.unique(contexts * base + tokens, return_counts=True)
    return NgramCounts(base, keys, np.cumsum(counts))


def ngram_contexts(documents: Sequence[Sequence[int]], base: int, order: int) -> tuple[list[np.ndarray], np.ndarray]:
    """For every token to predict, the number of the 0, 1, ... order - 1 tokens before it, and the token itself.

    Returns `order` arrays (N,) and one (N,). Before its first token, a document has the padding base - 1.
    """
    text = np.concatenate([[base - 1] * order + list(document) for document in documents]).astype(np.int64)
    is_target = np.concatenate([[False] * (order + 1) + [True] * (len(document) - 1) for document in documents])
    contexts = [np.zeros(len(text), dtype=np.int64)]
    for distance in range(1, order):
        contexts.append(contexts[-1] + np.roll(text, distance) * base ** (distance - 1))
    return [context[is_target] for context in contexts], text[is_target]


N_BUCKETS = 64


def bucket_of(count: np.ndarray) -> np.ndarray:
    """0 for a context that never occurred, then one bucket for each doubling of its count, up to 2**62."""
    return np.where(count > 0, np.log2(np.maximum(1, count)).astype(np.int64) + 1, 0)


def fit_mixture(specific: np.ndarray, general: np.ndarray, bucket: np.ndarray, iterations: int = 20) -> np.ndarray:
    """How far to trust each bucket's specific estimate: weights w that make w * specific + (1 - w) * general likely.

    specific, general: (N,) probabilities of N held-out tokens; bucket: (N,) int. Returns (N_BUCKETS,). Each iteration
    of expectation maximisation sets w to the mean share of the specific part, counting one token more that is half
    specific: a w of exactly 1 would call what was never counted impossible. Bucket 0, contexts that never occurred,
    has no specific part and gets 0.
    """
    weights = np.full(N_BUCKETS, 0.5)
    weights[0] = 0.0
    tokens = np.bincount(bucket, minlength=N_BUCKETS)
    for _ in range(iterations):
        part = weights[bucket] * specific
        share = part / (part + (1 - weights[bucket]) * general)
        total = np.bincount(bucket, weights=share, minlength=N_BUCKETS)
        weights = (total + 0.5) / (tokens + 1)
        weights[0] = 0.0
    return weights


class NgramModel:
    """The best guess from the last order - 1 tokens, by counting: the baseline that a trained model has to beat.

    p(token | k tokens) = w * frequency + (1 - w) * p(token | k - 1 tokens), and at the bottom 1/V. The weight w depends
    on how often the k tokens occurred, and is fitted on documents that were not counted. Source: Jelinek and Mercer
    (1980), "Interpolated estimation of Markov source parameters from sparse data"; buckets as in Chen and Goodman
    (1999), "An empirical study of smoothing techniques for language modeling".
    """

    def __init__(self, vocab_size: int, counts: list[NgramCounts], weights: list[np.ndarray]) -> None:
        self.vocab_size = vocab_size
        self.counts = counts  # for contexts of 0, 1, ... order - 1 tokens
        self.weights = weights  # one (N_BUCKETS,) for each

    @classmethod
    def fit(
        cls, documents: Sequence[Sequence[int]], vocab_size: int, order: int = 3, held_out: float = 0.1
    ) -> "NgramModel":
        """Count in the first documents, fit the weights on the share `held_out` of them at the end."""
        base = vocab_size + 1
        if base**order >= 2**63:
            raise CourseError(f"{order} tokens of a vocabulary of {vocab_size} do not fit 64 bits: use a lower order")
        split = max(1, len(documents) - max(1, round(held_out * len(documents))))
        contexts, tokens = ngram_contexts(documents[:split], base, order)
        model = cls(vocab_size, [count_ngrams(context, tokens, base) for context in contexts], [])
        contexts, tokens = ngram_contexts(documents[split:] or documents, base, order)
        for counts, context in zip(model.counts, contexts, strict=True):
            general = model.probabilities(contexts, tokens)  # with the weights found so far
            bucket = bucket_of(counts.of_context(context))
            model.weights.append(fit_mixture(counts.frequency(context, tokens), general, bucket))
        return model

    def probabilities(self, contexts: list[np.ndarray], tokens: np.ndarray) -> np.ndarray:
        """p of each token after its context, (N,); the arguments are those that `ngram_contexts` returns."""
        p = np.full(len(tokens), 1 / self.vocab_size)
        for counts, weights, context in zip(self.counts, self.weights, contexts, strict=False):
            w = weights[bucket_of(counts.of_context(context))]
            p = w * counts.frequency(context, tokens) + (1 - w) * p
        return p

    def loss(self, documents: Sequence[Sequence[int]]) -> float:
        """Mean nats per token, each document read from its first token."""
        contexts, tokens = ngram_contexts(documents, self.vocab_size + 1, len(self.counts))
        return float(-np.log(self.probabilities(contexts, tokens)).mean())

    def sample(self, start: int, stop: int, max_tokens: int, seed: int) -> list[int]:
        """A document drawn from the model: begins with `start`, ends with `stop` or after max_tokens."""
        rng = np.random.default_rng(seed)
        ids = [start]
        while len(ids) < max_tokens and (len(ids) == 1 or ids[-1] != stop):
            ids.append(draw_next(self, ids, rng))
        return ids


def draw_next(model: NgramModel, ids: list[int], rng: np.random.Generator) -> int:
    """Draw one token after ids: walk from the longest context to the shortest, and stay with the probability w."""
    base, order = model.vocab_size + 1, len(model.counts)
    recent = [*reversed(ids), *[base - 1] * order]  # the last token first
    for length in range(order - 1, -1, -1):
        counts, weights = model.counts[length], model.weights[length]
        context = np.array(sum(token * base**place for place, token in enumerate(recent[:length])))
        seen = counts.of_context(context)
        if seen > 0 and rng.random() < weights[bucket_of(seen)]:
            before = counts.occurrences(np.array(0), context * base)
            chosen = np.searchsorted(counts.ends, before + rng.integers(seen), side="right")
            return int(counts.keys[chosen] % base)
    return int(rng.integers(model.vocab_size))


def gzip_bits_per_byte(text: str) -> float:
    """What gzip -9 needs for the text, in bits per byte of its UTF-8."""
    data = text.encode()
    return 8 * len(gzip.compress(data, 9)) / len(data)


def xz_bits_per_byte(text: str, seen: str = "") -> float:
    """What xz -9 needs for the text when it has just compressed `seen`, in bits per byte of the text's UTF-8.

    With the training text as `seen` it is a fair rival of a model that was trained on it (xz looks back 64 MiB).
    """
    before, data = seen.encode(), text.encode()
    alone = len(lzma.compress(before, preset=9)) if before else 0
    return 8 * (len(lzma.compress(before + data, preset=9)) - alone) / len(data)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Inside: no dropout and no gradients; afterwards the model is in the mode it was in."""
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(was_training)


def batches_of_similar_length(pieces: Sequence[Piece], batch_tokens: int) -> Iterator[list[Piece]]:
    """The pieces in lists that take at most batch_tokens when padded; sorted first, so that little is padded."""
    batch: list[Piece] = []
    for piece in sorted(pieces, key=lambda piece: piece.start - piece.stop):  # the longest first
        longest = batch[0] if batch else piece
        if batch and (longest.stop - longest.start) * (len(batch) + 1) > batch_tokens:
            yield batch
            batch = []
        batch.append(piece)
    if batch:
        yield batch


def pad_pieces(
    pieces: Sequence[Piece], documents: Sequence[Sequence[int]], masks: Sequence[Sequence[bool]] | None
) -> tuple[Tensor, Tensor]:
    """Inputs and targets, both (B, T), of B pieces of documents; T is one less than the longest of them.

    The padding comes after the text, where a causal model cannot see it from any earlier token.
    """
    longest = max(piece.stop - piece.start for piece in pieces)
    inputs = torch.zeros(len(pieces), longest - 1, dtype=torch.int64)  # (B, T)
    targets = torch.full((len(pieces), longest - 1), IGNORE_INDEX)  # (B, T)
    for row, (document, start, stop) in enumerate(pieces):
        ids = torch.tensor(documents[document][start:stop])  # (t,)
        inputs[row, : len(ids) - 1] = ids[:-1]
        targets[row, : len(ids) - 1] = ids[1:]
        if masks is not None:
            is_target = torch.tensor(masks[document][start + 1 : stop])  # (t - 1,)
            targets[row, : len(ids) - 1].masked_fill_(~is_target, IGNORE_INDEX)
    return inputs, targets


def document_nats(
    model: nn.Module,
    documents: Sequence[Sequence[int]],
    masks: Sequence[Sequence[bool]] | None = None,
    *,
    batch_tokens: int = 8192,
    precision: str = "auto",
) -> tuple[np.ndarray, np.ndarray]:
    """The loss of each document in nats, and how many of its tokens are predicted: two (n,) arrays.

    A document is a list of ids whose first token is only read. Each is read from that token, alone in its row; one
    that is longer than the context is read in pieces (`cut_documents`), so that every target still counts once.
    masks: which tokens are targets (all but the first when None).
    """
    nats = np.zeros(len(documents))
    counts = np.zeros(len(documents), dtype=np.int64)
    config: Any = model.config  # PyTorch types every attribute of a module as a tensor or a module
    pieces = cut_documents([len(document) for document in documents], config.context + 1)
    device = device_of(model)
    with evaluating(model), autocast(device, precision):
        for batch in batches_of_similar_length(pieces, batch_tokens):
            inputs, targets = (tensor.to(device) for tensor in pad_pieces(batch, documents, masks))
            losses = cross_entropy(model(inputs), targets, reduction="none")  # (B, T)
            owners = [piece.document for piece in batch]
            np.add.at(nats, owners, losses.double().sum(dim=1).cpu().numpy())
            np.add.at(counts, owners, (targets != IGNORE_INDEX).sum(dim=1).cpu().numpy())
    return nats, counts


def document_loss(
    model: nn.Module,
    documents: Sequence[Sequence[int]],
    masks: Sequence[Sequence[bool]] | None = None,
    *,
    batch_tokens: int = 8192,
    precision: str = "auto",
) -> float:
    """Mean nats per predicted token over whole documents; arguments as in `document_nats`."""
    nats, counts = document_nats(model, documents, masks, batch_tokens=batch_tokens, precision=precision)
    if counts.sum() == 0:
        raise CourseError("there is no token to predict in these documents: give some of at least two tokens")
    return float(nats.sum() / counts.sum())
