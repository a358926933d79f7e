"""A run that fits into a given time: how fast models of several sizes learn on this machine, and which one to take.

A larger model gains more from each token, a smaller one reads more tokens in the same time. Somewhere between them is
the size with the lowest loss; the law of notebook 5.5 says where, once it is measured how fast each size reads.
"""

import copy
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch

from shared.app.progress import Say
from shared.errors import CourseError
from shared.memory import keep_freed_memory
from shared.model.gpt import LanguageModel
from shared.text.loader import Shard
from shared.training.checkpoint import ARCHITECTURES
from shared.training.device import best_device
from shared.training.runlog import Preset
from shared.training.scaling import PowerLaw, loss_law
from shared.training.train import Batch, TrainConfig, TrainingInterrupted, train

# Besiroglu et al. (2024), "Chinchilla Scaling: A replication attempt". Our own grid reaches from 14 to 131 thousand
# parameters, and its law loses its way a hundred times further up; this one was fitted far above the sizes here. There
# the tables of the vocabulary hardly count, here they are half of the model: so N is what lies in the blocks.
LAW = PowerLaw(1.8172, 482.01, 2085.43, 0.3478, 0.3658)

LADDER = (0.25, 0.375, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 4.0)  # times the preset's width, heads and layers
TRAINING_SHARE = 0.85  # of the hours; the rest is for the text, the tokenizer, validation and the report
FEWEST_STEPS = 20
MOST_STORIES = 160_000  # more would take memory and gain little: this is already twice the largest preset's text
MEASURED_ROWS = 8  # a batch is measured with so many rows at most
LEAST_LAYERS = 2  # one layer cannot look for what followed the last time (notebook 3.6)
CHECKPOINTS = 40  # in a whole run


@dataclass(frozen=True)
class Sizes:
    """What was decided for a run of so many hours: keyword arguments of the model's config, steps, stories."""

    model: dict[str, Any]
    steps: int
    tuning_steps: int
    stories: int

    def applied_to(self, preset: Preset) -> Preset:
        """The preset with these sizes in the place of its own."""
        return replace(
            preset,
            model=self.model,
            pretrain=scaled(preset.pretrain, self.steps),
            stories=self.stories,
            every=max(preset.every, self.steps // CHECKPOINTS),
        )


@dataclass(frozen=True)
class Rung:
    """A size on the ladder: what it is, what it costs here, and what it would reach in the time."""

    model: dict[str, Any]
    parameters: int  # in its blocks
    seconds: float  # for a step
    steps: int  # of pretraining and tuning together
    tokens: float  # that pretraining would read, or as many as there are
    loss: float  # which the law expects of it


def fit_to_time(preset: Preset, hours: float, say: Say, *, tuned: bool, most_tokens: float | None = None) -> Sizes:
    """Choose the model's size and the number of steps for a job of so many hours on this machine.

    tuned: whether a tuning follows, which then gets its share of the steps, up to the preset's own number. most_tokens:
    how many the text is worth, each counted as often as it may be read; None where text can be made as needed. The
    ladder is climbed from the preset's own size upwards, or else downwards, for as long as the law expects a lower
    loss, so that no more is measured than needed. CourseError when the time is too short for anything.
    """
    seconds = TRAINING_SHARE * 3600 * hours
    tried: list[int] = []

    def rung(model: dict[str, Any]) -> Rung:
        each, parameters = measure(preset, model)
        tried.append(parameters)
        steps = int(seconds / each)
        tokens = float((steps - tuning_steps(preset, steps, tuned)) * tokens_per_step(preset))
        tokens = min(tokens, most_tokens or tokens)
        loss = float(loss_law(LAW, np.array(parameters), np.array(tokens))) if tokens else float("inf")
        return Rung(model, parameters, each, steps, tokens, loss)

    best = climb(rung, ladder(preset.model), preset.model)
    if best.steps < FEWEST_STEPS:
        raise CourseError(
            f"{hours:g} hours are too short for the preset {preset.name}: a step of its smallest model takes "
            f"{best.seconds:.2g} s here; give it more time, or choose a smaller preset"
        )
    tuning = tuning_steps(preset, best.steps, tuned)
    steps = min(best.steps - tuning, max(FEWEST_STEPS, int(best.tokens / tokens_per_step(preset))))
    speed = tokens_per_step(preset) / best.seconds
    say(
        f"{hours:g} hours: of models with {min(tried):,} to {max(tried):,} parameters in their blocks the law of "
        f"notebook 5.5 expects most of the one with {best.parameters:,}; it reads {speed:,.0f} tokens a second here, "
        f"so there will be {best.tokens / 1e6:,.1f} million, {best.tokens / best.parameters:.0f} for each parameter"
    )
    grown = preset.stories * steps / preset.pretrain["steps"]
    return Sizes(best.model, steps, tuning, max(1, min(MOST_STORIES, round(grown))))


def climb(rung: Callable[[dict[str, Any]], Rung], models: list[dict[str, Any]], own: dict[str, Any]) -> Rung:
    """The rung with the lowest loss, from the preset's own model upwards, or else downwards, until the loss rises."""
    at = models.index(own)
    best = start = rung(own)
    for way in (models[at + 1 :], models[:at][::-1]):
        for model in way:
            found = rung(model)
            if found.loss >= best.loss:
                break
            best = found
        if best is not start:
            break
    return best


def tuning_steps(preset: Preset, steps: int, tuned: bool) -> int:
    """How many of so many steps are for tuning: as large a share as in the preset, but never more than there."""
    share = preset.finetune["steps"] / (preset.finetune["steps"] + preset.pretrain["steps"])
    return max(1, min(preset.finetune["steps"], round(share * steps))) if tuned else 0


def tokens_per_step(preset: Preset) -> int:
    """How many tokens a step of pretraining reads."""
    return preset.pretrain["batch_size"] * preset.model["context"]


def ladder(model: dict[str, Any]) -> list[dict[str, Any]]:
    """Models of the same shape, from the smallest to the largest, no two alike."""
    models: list[dict[str, Any]] = []
    for scale in LADDER:
        found = scaled_model(model, scale)
        if found not in models:
            models.append(found)
    return models


def scaled_model(model: dict[str, Any], scale: float) -> dict[str, Any]:
    """A model of the same shape, wider and deeper, or narrower and shallower: the heads keep their width.

    model: keyword arguments of a config. Where a head's width is not given, heads times their width give the model's.
    """
    heads = max(1, round(scale * model["n_heads"]))
    n_layers = max(min(LEAST_LAYERS, model["n_layers"]), round(scale * model["n_layers"]))
    if "head_width" in model:
        unit = math.lcm(16, heads)  # a width that heads share evenly and that processors like
        width = unit * max(1, round(scale * model["width"] / unit))
    else:
        width = heads * (model["width"] // model["n_heads"])
    return {**model, "n_layers": n_layers, "n_heads": heads, "width": width}


# ------------------------------------------------------------------------------------------------- measuring


def measure(preset: Preset, model_sizes: dict[str, Any]) -> tuple[float, int]:
    """(seconds that a step of pretraining takes here, number of parameters in the blocks) for a model of these sizes.

    The faster of two measurements: what else the machine does for a moment is no property of the model.
    """
    model = new_model(replace(preset, model=model_sizes), preset.vocab_size)
    config = TrainConfig(**preset.pretrain)
    rows = min(MEASURED_ROWS, config.batch_size)
    ids = torch.randint(preset.vocab_size, (rows, preset.model["context"] + 1))  # (rows, T + 1)
    few = replace(config, batch_size=rows)
    seconds = min(seconds_per_step(model, lambda step: (ids[:, :-1], ids[:, 1:]), few) for _ in range(2))
    return seconds * config.batch_size / rows, count_parameters(model.get_submodule("blocks"))


def seconds_per_step(model: LanguageModel, shard: Shard | Callable[[int], Batch], config: TrainConfig) -> float:
    """How long a step takes here, measured on a copy of the model that is thrown away."""
    ends: list[float] = []
    trial = replace(config, steps=4, warmup=0, decay=0)
    try:
        train(copy.deepcopy(model), shard, trial, [lambda run: ends.append(time.perf_counter())])
    except TrainingInterrupted:  # it says "step 2 of 4", which would puzzle who pressed Ctrl-C
        raise KeyboardInterrupt from None
    return statistics.median(after - before for before, after in pairwise(ends))


def scaled(options: dict[str, Any], steps: int | None) -> dict[str, Any]:
    """A preset's training options for another number of steps: warm-up and decay keep their shares."""
    if steps is None:
        return options
    factor = steps / options["steps"]
    shares: dict[str, Any] = {key: round(options[key] * factor) for key in ("warmup", "decay") if key in options}
    return {**options, **shares, "steps": steps}


def new_model(preset: Preset, vocab_size: int) -> LanguageModel:
    """The untrained model of a preset, on the device that will train it."""
    model_class, config_class = ARCHITECTURES[preset.architecture]
    keep_freed_memory()
    return model_class(config_class(vocab_size=vocab_size, **preset.model)).to(best_device())


def count_parameters(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
