"""Training a GPT in NumPy: from documents to batches, the loop, and two measures of what came out.

The batch and the dropout at a step are functions of (seed, step) and of nothing else: the same run always reads the
same text in the same order.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from shared.bare.gpt import BareGPT
from shared.bare.nn import IGNORE_INDEX, cross_entropy
from shared.bare.optim import AdamW, clip_gradients, learning_rate_at
from shared.bare.tensor import backward, no_grad
from shared.errors import CourseError


@dataclass(frozen=True)
class Rows:
    """Documents laid side by side in rows of equal room.

    tokens (N, T + 1); is_target (N, T) bool, where is_target[n, t] speaks of tokens[n, t + 1]; used (N,): how many
    tokens of each row are text, behind which there is only filler.
    """

    tokens: np.ndarray
    is_target: np.ndarray
    used: np.ndarray

    def __len__(self) -> int:
        return len(self.tokens)


def lay_in_rows(documents: Sequence[Sequence[int]], context: int, share_rows: bool = True) -> Rows:
    """Put documents into rows of context + 1 tokens, in their order; a row is full when the next one does not fit.

    A document's first token is read and never predicted. One that is longer than a row is cut into pieces, which
    overlap by one token so that every other token is a target once. Without share_rows each piece has its own row.
    CourseError when there is nothing to predict.
    """
    rows: list[list[int]] = []
    marks: list[list[bool]] = []  # for each token whether it is a target
    for document in documents:
        for start in range(0, len(document) - 1, context):
            piece = list(document[start : start + context + 1])
            if not rows or not share_rows or len(rows[-1]) + len(piece) > context + 1:
                rows.append([])
                marks.append([])
            rows[-1] += piece
            marks[-1] += [False] + [True] * (len(piece) - 1)
    if not rows:
        raise CourseError("there is nothing to predict in these documents: give some of at least two tokens")
    tokens = np.zeros((len(rows), context + 1), dtype=np.int64)  # (N, T + 1)
    is_target = np.zeros((len(rows), context + 1), dtype=bool)  # (N, T + 1)
    for number, (row, mark) in enumerate(zip(rows, marks, strict=True)):
        tokens[number, : len(row)] = row
        is_target[number, : len(row)] = mark
    return Rows(tokens, is_target[:, 1:], np.array([len(row) for row in rows]))


def read_rows(rows: Rows, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Inputs and targets of the rows with these numbers, (B, T) each, IGNORE_INDEX where nothing is predicted.

    T is only as large as the longest of them needs: filler costs as much time as text.
    """
    longest = rows.used[numbers].max()
    tokens = rows.tokens[numbers, :longest]  # (B, T + 1)
    is_target = rows.is_target[numbers, : longest - 1]  # (B, T)
    return tokens[:, :-1], np.where(is_target, tokens[:, 1:], IGNORE_INDEX)


def rows_of_step(step: int, batch_size: int, n_rows: int, seed: int) -> np.ndarray:
    """(B,) the rows of the batch at `step`: places step * B ... step * B + B - 1 of an endless list.

    That list is one permutation of all rows after another, a new one for each epoch, drawn from (seed, epoch).
    """
    places = np.arange(step * batch_size, (step + 1) * batch_size)  # (B,)
    epochs, within = np.divmod(places, n_rows)  # (B,), (B,)
    orders = {epoch: np.random.default_rng([seed, epoch]).permutation(n_rows) for epoch in set(epochs.tolist())}
    return np.array([orders[epoch][place] for epoch, place in zip(epochs.tolist(), within, strict=True)])


def get_batch(rows: Rows, step: int, batch_size: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The batch at `step`, a pure function of (seed, step): inputs (B, T) and targets (B, T)."""
    return read_rows(rows, rows_of_step(step, batch_size, len(rows), seed))


@dataclass(frozen=True)
class BareTrainConfig:
    """How to train. learning_rate is the highest that the schedule reaches, after `warmup` steps; the last `decay`
    steps lower it to 0 in a straight line. clip: the largest norm of the gradient."""

    steps: int
    batch_size: int = 16
    learning_rate: float = 3e-3
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.0
    warmup: int = 20
    decay: int = 100
    clip: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("steps", 1), ("batch_size", 1), ("warmup", 0), ("decay", 0), ("seed", 0)):
            if getattr(self, name) < least:
                raise CourseError(f"{name} is {getattr(self, name)}: it must be at least {least}")


@dataclass
class BareRun:
    """A training run in progress, which call-backs may read: one record in `history` for each finished step."""

    model: BareGPT
    config: BareTrainConfig
    optimizer: AdamW
    history: list[dict] = field(default_factory=list)

    @property
    def step(self) -> int:
        """The finished steps."""
        return len(self.history)


def train_step(run: BareRun, inputs: np.ndarray, targets: np.ndarray) -> dict:
    """One step, in place: forward, backward, clip, update. inputs and targets (B, T); returns the step's record."""
    config = run.config
    rng = np.random.default_rng([config.seed, run.step])  # what dropout draws from
    loss = cross_entropy(run.model(inputs, rng=rng), targets)
    backward(loss)
    norm = clip_gradients(run.optimizer.parameters.values(), config.clip)
    if not np.isfinite(loss.item() + norm):
        raise CourseError(f"the loss is {loss.item()} at step {run.step + 1}: lower the learning rate")
    rate = learning_rate_at(
        run.step, peak=config.learning_rate, steps=config.steps, warmup=config.warmup, decay=config.decay
    )
    run.optimizer.lr = rate
    run.optimizer.step()
    return {"step": run.step + 1, "loss": loss.item(), "norm": norm, "lr": rate}


def train(
    model: BareGPT, rows: Rows, config: BareTrainConfig, callbacks: Sequence[Callable[[BareRun], None]] = ()
) -> list[dict]:
    """Train the model in place and return the history: step, loss (nats per token), norm and lr of every step.

    The call-backs are called in their order after every step. CourseError when the loss is no longer a number.
    """
    optimizer = AdamW(model.parameters(), betas=config.betas, weight_decay=config.weight_decay)
    run = BareRun(model, config, optimizer)
    while run.step < config.steps:
        inputs, targets = get_batch(rows, run.step, config.batch_size, config.seed)
        run.history.append(train_step(run, inputs, targets))
        for callback in callbacks:
            callback(run)
    return run.history


def document_loss(model: BareGPT, documents: Sequence[Sequence[int]], batch_size: int = 32) -> float:
    """Mean nats per predicted token over whole documents, each read from its first token, alone in its row."""
    rows = lay_in_rows(documents, model.config.context, share_rows=False)
    order = np.argsort(-rows.used, kind="stable")  # alike in a batch: less filler
    nats, predicted = 0.0, 0
    with no_grad():
        for first in range(0, len(rows), batch_size):
            inputs, targets = read_rows(rows, order[first : first + batch_size])
            wanted = int((targets != IGNORE_INDEX).sum())
            nats += cross_entropy(model(inputs), targets).item() * wanted
            predicted += wanted
    return nats / predicted


def contexts_and_tokens(documents: Sequence[Sequence[int]], base: int, length: int) -> tuple[np.ndarray, np.ndarray]:
    """For every token to predict, the `length` tokens before it as one number in the given base, and the token itself.

    Before its first token, a document has the padding base - 1. Returns two int64 arrays (N,).
    """
    text = np.concatenate([[base - 1] * length + list(document) for document in documents]).astype(np.int64)
    is_target = np.concatenate([[False] * (length + 1) + [True] * (len(document) - 1) for document in documents])
    contexts = np.zeros(len(text), dtype=np.int64)
    for distance in range(1, length + 1):
        contexts += np.roll(text, distance) * base ** (distance - 1)
    return contexts[is_target], text[is_target]


def look_up(keys: np.ndarray, values: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """The value of each wanted key, 0 for one that is not there: keys (n,) ascending, values (n,), wanted (N,)."""
    places = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[places] == wanted, values[places], 0)


def ngram_loss(
    train: Sequence[Sequence[int]], unseen: Sequence[Sequence[int]], vocab_size: int, order: int = 3
) -> float:
    """What counting achieves, in nats per token of the unseen documents: the baseline that a GPT has to beat.

    p(token | k tokens) = (c + u p(token | k - 1 tokens)) / (n + u), where the k tokens occurred n times, c times before
    this token, and before u different ones: the more varied their continuations, the more a new one is to be expected.
    At the bottom is 1/V. Source: Witten and Bell (1991), "The zero-frequency problem: estimating the probabilities of
    novel events in adaptive text compression", method C.
    """
    base = vocab_size + 1
    if base**order >= 2**63:
        raise CourseError(f"{order} tokens of a vocabulary of {vocab_size} do not fit 64 bits: use a lower order")
    p = np.array(1 / vocab_size)
    for length in range(order):
        contexts, tokens = contexts_and_tokens(train, base, length)
        sequences, counts = np.unique(contexts * base + tokens, return_counts=True)
        known, first, different = np.unique(sequences // base, return_index=True, return_counts=True)
        totals = np.add.reduceat(counts, first)
        contexts, tokens = contexts_and_tokens(unseen, base, length)
        c = look_up(sequences, counts, contexts * base + tokens)
        n, u = look_up(known, totals, contexts), look_up(known, different, contexts)
        p = np.where(n > 0, (c + u * p) / np.maximum(1, n + u), p)
    return float(-np.log(p).mean())
