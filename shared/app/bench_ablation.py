"""Which parts of the new recipe matter: each switched off alone, over several seeds, at equal tokens and equal time.

The first line of figures is the recipe itself. A variant changes one thing. At equal tokens it does as many steps as
the recipe; at equal time as many as fit into the recipe's seconds, with a schedule of that length. Seconds are those
of the processor (on one thread: what a clock on the wall shows when nothing else runs), for other work on the machine
would decide such small differences otherwise.
"""

from collections.abc import Sequence
from dataclasses import asdict, replace
from statistics import fmean, stdev
from time import process_time
from typing import Any

import torch
from tqdm import tqdm

from shared.app.bench_recipes import CONTEXT, SHORT, Characters, Recipe, load_characters, new_contestant, val_loss
from shared.memory import keep_freed_memory

SEEDS = (0, 1, 2)
BASE = SHORT
WHOLE = "the whole recipe"

# name -> what is different: of the recipe, and of the model
CHANGES: dict[str, tuple[dict, dict]] = {
    "LayerNorm -> RMSNorm": ({}, {"norm": "rms"}),
    "rotary -> learned positions": ({}, {"positions": "learned"}),
    "no QK-norm": ({}, {"qk_norm": False}),
    "ReLU² -> GELU": ({}, {"activation": "gelu"}),
    "zeros -> normal start": ({}, {"zero_init": False}),
    "untied -> tied head": ({}, {"tied": True}),
    "no value embeddings": ({}, {"value_embeddings": False}),
    "no x0 skips": ({}, {"x0_skips": False}),
    "no n-gram tables": ({}, {"ngrams": ()}),
    "soft-cap of 15 on the logits": ({}, {"softcap": 15.0}),
    "Muon -> AdamW for all": ({"optimizer": "adamw"}, {}),
    "stable/decay -> cosine": ({"schedule": "cosine"}, {}),
}


def variants(base: Recipe = BASE) -> dict[str, Recipe]:
    """The recipe itself, then one for each change."""
    changed = {
        name: replace(base, **recipe, model={**base.model, **model}) for name, (recipe, model) in CHANGES.items()
    }
    return {WHOLE: base, **changed}


def measure(characters: Characters, recipe: Recipe, seed: int) -> dict[str, Any]:
    """Train once: steps, tokens, seconds of the processor, and the validation loss at the end."""
    contestant = new_contestant(characters, seed, recipe)
    start = process_time()
    for step in range(recipe.steps):
        contestant.turn(step / recipe.steps)
    seconds = process_time() - start
    tokens = recipe.steps * recipe.batch_size * CONTEXT
    loss = val_loss(contestant.model, characters, precision="auto")  # 78 times: in half the time, to 0.001
    return {
        "seed": seed,
        "steps": recipe.steps,
        "tokens": tokens,
        "seconds": round(seconds, 2),
        "val_loss": round(loss, 5),
    }


def steps_in_equal_time(base: Sequence[dict], other: Sequence[dict]) -> int:
    """How many steps of the other fit into the base's time, from runs of both: by the fastest of each."""
    ours, theirs = (min(run["seconds"] / run["steps"] for run in runs) for runs in (base, other))
    return max(1, round(base[0]["steps"] * ours / theirs))


def summary(name: str, at: str, runs: list[dict], base: list[dict]) -> dict[str, Any]:
    """A line of the log. difference: of the mean loss to the recipe's, above 0 where the change harms; spread: the
    standard deviation of the paired differences, seed by seed."""
    differences = [run["val_loss"] - other["val_loss"] for run, other in zip(runs, base, strict=True)]
    ours, peer = (fmean(run["val_loss"] for run in group) for group in (base, runs))
    return {
        "name": f"{name}, at equal {at}",
        "variant": name,
        "at": at,
        "ours": ours,
        "peer": peer,
        "ratio": peer / ours,
        "difference": fmean(differences),
        "spread": stdev(differences) if len(runs) > 1 else None,
        "runs": runs,
        "bound": 0.0,  # nothing is demanded: a change that helps is a finding, not a failure
        "ok": True,
    }


def ablate(characters: Characters, recipes: dict[str, Recipe], seeds: Sequence[int] = SEEDS) -> list[dict]:
    """Two lines for each variant, at equal tokens and at equal time; the recipe itself comes first.

    The variants take turns seed by seed, so that a slow hour of the machine hits all of them.
    """

    def run_all(planned: dict[str, Recipe], title: str) -> dict[str, list[dict]]:
        runs: dict[str, list[dict]] = {name: [] for name in planned}
        with tqdm(total=len(seeds) * len(planned), unit="run", desc=title) as bar:
            for seed in seeds:
                for name, recipe in planned.items():
                    runs[name].append(measure(characters, recipe, seed))
                    bar.update()
        return runs

    at_tokens = run_all(recipes, "equal tokens")
    base = at_tokens[WHOLE]
    steps = {name: steps_in_equal_time(base, runs) for name, runs in at_tokens.items()}
    again = {name: replace(r, steps=steps[name]) for name, r in recipes.items() if steps[name] != r.steps}
    at_time = at_tokens | run_all(again, "equal time")  # who takes as long as the recipe has done it already
    groups = (("tokens", at_tokens), ("time", at_time))
    return [summary(name, at, runs[name], base) for name in recipes for at, runs in groups]


def bench_ablation(data: str | None = None) -> list[dict]:
    """The losses of the recipe (ours) and of each variant (peer): name, ours, peer, ratio, difference, spread, runs...

    data: a text file; Tiny Shakespeare when None.
    """
    keep_freed_memory()
    recipes = variants()
    lines = ablate(load_characters(data), recipes)
    for line in lines:
        line["settings"] = {
            **asdict(recipes[line["variant"]]),
            "unit": "nats a character",
            "peer": line["variant"],
            "threads": torch.get_num_threads(),
        }
    return lines
