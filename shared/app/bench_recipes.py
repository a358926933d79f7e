"""Two recipes of training race on Tiny Shakespeare: GPT-2's as it is run on a processor, and what was learnt since.

Both read the same characters and are judged on the same ones. They train in one process and take turns in short
slices, so that whatever else the machine does slows both down alike. Only training is timed: no validation, no
building of models. The new recipe runs twice, with two schedules: a short one, to arrive where the baseline ends, and
one as long as the baseline takes.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from statistics import fmean
from time import perf_counter
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from shared.app.bench_model import SpeedConfig, SpeedGPT
from shared.corpora import load_corpus
from shared.errors import CourseError
from shared.memory import keep_freed_memory
from shared.model.gpt import GPT, GPTConfig
from shared.text.characters import CharacterTokenizer
from shared.text.loader import rows_of_step
from shared.training.device import autocast, native_bf16
from shared.training.evaluate import cross_entropy, document_loss
from shared.training.optim import AdamW, Muon, parameter_groups, warmup_cosine, warmup_stable_decay
from shared.training.train import Batch, Run, TrainConfig, build_optimizers, train_step

CORPUS = "tinyshakespeare"
CONTEXT = 64
SEEDS = (0, 1, 2)
TIME_BOUND = 7.0  # the baseline's time over ours, to the same loss
LOSS_BOUND = 1.55  # nats a character, after the same time
SLICE = 20  # steps of the baseline between two turns
PAUSE = 30.0  # times the usual length: such a step was interrupted

BASELINE_SIZES = {"context": CONTEXT, "n_layers": 4, "n_heads": 4, "width": 128}
BASELINE = TrainConfig(
    steps=2000,
    batch_size=12,
    optimizer="adamw",
    learning_rate=1e-3,
    betas=(0.9, 0.99),
    weight_decay=0.1,
    schedule="cosine",
    warmup=100,
    floor=0.1,
    clip=1.0,
    precision="fp32",
)


@dataclass(frozen=True)
class Recipe:
    """How a SpeedGPT is trained: rows a step, the highest learning rates, and the shape of the schedule.

    Muon takes the matrices of the blocks, a sparse Adam the n-gram tables (only rows that a batch has read are
    touched: most of a large table costs nothing), AdamW the rest. `embedding_rate` is for tables of single tokens,
    `vector_rate` for the gains. With optimizer "adamw" the matrices go to AdamW at `adamw_rate`. weight_decay is
    Muon's. warmup and decay are shares of the whole run. steps: how many, where the time does not decide.
    """

    steps: int = 50
    batch_size: int = 32
    optimizer: str = "muon"
    matrix_rate: float = 0.02
    adamw_rate: float = 0.003
    head_rate: float = 0.01
    embedding_rate: float = 0.03
    ngram_rate: float = 0.1
    vector_rate: float = 0.02
    weight_decay: float = 0.0
    schedule: str = "stable"
    warmup: float = 0.02
    decay: float = 0.7
    model: dict = field(default_factory=dict)  # switches of the SpeedConfig


# A row of the n-gram tables is read a few times in the short run and has to learn from that. In the long run, at the
# same rate, the tables would learn the training text by heart: at 0.03 the loss was 0.02 nats higher than at 0.01.
SHORT = Recipe()
LONG = Recipe(ngram_rate=0.01)


@dataclass(frozen=True)
class Characters:
    """Tiny Shakespeare as ids: the first 90 % to train on, the rest to judge by."""

    vocab_size: int
    train: Tensor  # (n,) int64
    val: Tensor  # (m,) int64


def load_characters(data: str | Path | None = None) -> Characters:
    """The ids of a text file's characters, or of the download. CourseError when a part is shorter than a window."""
    corpus = load_corpus(CORPUS if data is None else data)
    text = "".join([*corpus.train, *corpus.val])
    ids = torch.tensor(CharacterTokenizer.train(text).encode(text))  # (N,)
    split = len(ids) * 9 // 10
    if len(ids) - split <= CONTEXT:
        raise CourseError(f"{corpus.name} has {len(ids):,} characters: its last tenth must be longer than {CONTEXT}")
    return Characters(int(ids.max()) + 1, ids[:split], ids[split:])


@lru_cache(maxsize=4)
def window_shift(seed: int, epoch: int) -> int:
    """By how many characters the windows of an epoch are shifted: once an epoch, not once a row of every batch."""
    return int(np.random.default_rng([seed, epoch]).integers(CONTEXT))


def batch_of(characters: Characters, step: int, batch_size: int, seed: int) -> Batch:
    """The rows at a step, inputs and targets (B, T): the same endless list of windows for every recipe.

    In an epoch the windows lie side by side and come in a random order; the next one shifts all of them.
    """
    room = len(characters.train) - CONTEXT - 1
    windows = room // CONTEXT
    epochs = np.arange(step * batch_size, (step + 1) * batch_size) // windows  # (B,)
    shifts = np.array([window_shift(seed, int(epoch)) for epoch in epochs])  # (B,)
    starts = CONTEXT * rows_of_step(step, batch_size, windows, seed) + shifts  # (B,)
    rows = characters.train[torch.from_numpy(starts)[:, None] + torch.arange(CONTEXT + 1)]  # (B, T + 1)
    return rows[:, :-1].contiguous(), rows[:, 1:].contiguous()


def val_loss(model: nn.Module, characters: Characters, precision: str = "fp32") -> float:
    """Nats a character over all of the validation text, in windows of the context side by side."""
    return document_loss(model, [characters.val.tolist()], precision=precision)


def learning_rate_factor(recipe: Recipe, progress: float) -> float:
    """What the learning rates are multiplied with when so much of the run is done, from 0 to 1.

    By the share and not by the step: how many steps fit into a given time is known only at its end.
    """
    whole = 1_000_000  # the schedules of `optim` count steps
    step, warmup = int(progress * whole), int(recipe.warmup * whole)
    if recipe.schedule == "cosine":
        return warmup_cosine(step, whole, warmup)
    return warmup_stable_decay(step, whole, warmup, int(recipe.decay * whole))


def new_optimizers(model: SpeedGPT, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """Muon, AdamW and a sparse Adam, every parameter in exactly one; each group has its highest rate as "peak"."""
    groups = parameter_groups(model)
    ngrams = list(model.ngram_tables.parameters())
    groups["embeddings"] = [table for table in groups["embeddings"] if all(table is not other for other in ngrams)]
    rates = {"embeddings": recipe.embedding_rate, "head": recipe.head_rate, "vectors": recipe.vector_rate}
    optimizers: list[torch.optim.Optimizer] = []
    if recipe.optimizer == "muon":
        optimizers.append(Muon(groups.pop("matrices"), lr=recipe.matrix_rate, weight_decay=recipe.weight_decay))
    else:
        rates["matrices"] = recipe.adamw_rate
    named = [{"params": members, "lr": rates[name]} for name, members in groups.items() if members]
    optimizers.append(AdamW(named, betas=(0.8, 0.95), weight_decay=0.0))
    if ngrams:
        optimizers.append(torch.optim.SparseAdam(ngrams, lr=recipe.ngram_rate, betas=(0.8, 0.99)))
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["peak"] = group["lr"]
    return optimizers


@dataclass
class Contestant:
    """One side of the race. advance(step, progress) trains one step; seconds: what the steps so far have taken."""

    model: nn.Module
    advance: Callable[[int, float], None]
    steps: int = 0
    seconds: float = 0.0

    def turn(self, progress: float) -> None:
        """Train one step, and count its time. progress: how much of the run is done, from 0 to 1.

        A step that takes PAUSE times as long as the others was interrupted (a laptop that slept, a process that was
        stopped): it counts as one of the others.
        """
        start = perf_counter()
        self.advance(self.steps, progress)
        elapsed = perf_counter() - start
        usual = self.seconds / max(1, self.steps)
        self.seconds += usual if self.steps >= SLICE and elapsed > PAUSE * usual else elapsed
        self.steps += 1


def baseline_contestant(characters: Characters, seed: int, config: TrainConfig = BASELINE) -> Contestant:
    """Our GPT in our own loop, as published for nanoGPT on a processor; its schedule counts its own steps."""
    torch.manual_seed(seed)
    model = GPT(GPTConfig(vocab_size=characters.vocab_size, **BASELINE_SIZES)).train()
    run = Run(model, config, build_optimizers(model, config))

    def advance(step: int, progress: float) -> None:
        train_step(run, batch_of(characters, step, config.batch_size, seed))
        run.step += 1

    return Contestant(model, advance)


def new_contestant(characters: Characters, seed: int, recipe: Recipe) -> Contestant:
    """The new model and its optimisers: bfloat16 where the processor has it, and no clipping."""
    torch.manual_seed(seed)
    model = SpeedGPT(SpeedConfig(characters.vocab_size, CONTEXT, **recipe.model)).train()
    optimizers = new_optimizers(model, recipe)

    def advance(step: int, progress: float) -> None:
        inputs, targets = batch_of(characters, step, recipe.batch_size, seed)  # (B, T) each
        with autocast(torch.device("cpu")):
            loss = cross_entropy(model(inputs), targets)
        loss.backward()
        factor = learning_rate_factor(recipe, progress)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * factor
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    return Contestant(model, advance)


def race(baseline: Contestant, short: Contestant, long: Contestant, steps: int, short_steps: int) -> None:
    """Train all three, by turns: the baseline for its steps, the short run for its own, the long one for as long as
    the baseline takes, and no step more.
    """
    for done in range(1, steps + 1):
        baseline.turn(done / steps)
        if done % SLICE and done < steps:
            continue
        while short.steps * steps < short_steps * done:
            short.turn(short.steps / short_steps)
        whole = baseline.seconds * steps / done  # what the baseline will have taken, as far as one can tell
        while long.seconds + long.seconds / max(1, long.steps) < baseline.seconds:  # a mean step still fits
            long.turn(min(1.0, long.seconds / whole))


def race_seed(characters: Characters, seed: int) -> dict[str, Any]:
    """One race: seconds, steps and final validation loss of the three."""
    sides = {
        "baseline": baseline_contestant(characters, seed),
        "short": new_contestant(characters, seed, SHORT),
        "long": new_contestant(characters, seed, LONG),
    }
    race(sides["baseline"], sides["short"], sides["long"], BASELINE.steps, SHORT.steps)
    result: dict[str, Any] = {"seed": seed}
    for name, side in sides.items():
        loss = val_loss(side.model, characters)
        result[name] = {"seconds": round(side.seconds, 3), "steps": side.steps, "val_loss": round(loss, 5)}
    return result


def bench_recipes(data: str | None = None, seeds: Sequence[int] = SEEDS) -> list[dict]:
    """The baseline's training time over ours to the same loss, and both losses after the same time.

    Returns two dicts: name, ours, peer, ratio, runs (one for each seed), settings, bound, ok. Seconds and losses are
    means over the seeds. data: a text file (Tiny Shakespeare when None); the bounds are meant for that one alone.
    """
    keep_freed_memory()
    characters = load_characters(data)
    runs = [race_seed(characters, seed) for seed in tqdm(seeds, unit="race", desc="races")]

    def mean(side: str, figure: str) -> float:
        return fmean(run[side][figure] for run in runs)

    settings = {
        "peer": "GPT-2 as nanoGPT's recipe for a processor trains it",
        "baseline": {**BASELINE_SIZES, **asdict(BASELINE)},
        "short": asdict(SHORT),
        "long": asdict(LONG),
        "model": asdict(SpeedConfig(characters.vocab_size, CONTEXT, **LONG.model)),
        "train_characters": len(characters.train),
        "val_characters": len(characters.val),
        "threads": torch.get_num_threads(),
        "precision": "bf16" if native_bf16("cpu") else "fp32",
        "seeds": list(seeds),
    }
    speedup = mean("baseline", "seconds") / mean("short", "seconds")
    arrived = mean("short", "val_loss") <= mean("baseline", "val_loss")
    losses = mean("long", "val_loss"), mean("baseline", "val_loss")
    return [
        {
            "name": "recipes_time_to_loss",
            "ours": mean("short", "seconds"),
            "peer": mean("baseline", "seconds"),
            "ratio": speedup,
            "runs": runs,
            "settings": {**settings, "unit": "s", "arrived": arrived},
            "bound": TIME_BOUND,
            "ok": arrived and speedup >= TIME_BOUND,
        },
        {
            "name": "recipes_loss_at_equal_time",
            "ours": losses[0],
            "peer": losses[1],
            "ratio": losses[1] / losses[0],
            "runs": runs,
            "settings": {**settings, "unit": "nats a character", "loss_bound": LOSS_BOUND},
            "bound": losses[1] / LOSS_BOUND,
            "ok": losses[0] <= LOSS_BOUND,
        },
    ]
