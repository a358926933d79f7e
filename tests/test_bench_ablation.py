"""The ablation: one change at a time, seed against seed, and as many steps as fit into the same time."""

from dataclasses import asdict

import pytest
import torch

from shared.app import bench_ablation as bench
from shared.app.bench_ablation import CHANGES, WHOLE, ablate, steps_in_equal_time, variants
from shared.app.bench_recipes import CONTEXT, Characters, Recipe, new_contestant
from shared.app.cli import main
from shared.training.runlog import read_log


def flat(recipe, characters=11):
    """Everything that a recipe decides: its own fields, and those of its model with their defaults."""
    model = new_contestant(Characters(characters, torch.arange(200) % 11, torch.zeros(0)), 0, recipe).model
    return {key: value for key, value in asdict(recipe).items() if key != "model"} | asdict(model.config)


def test_every_variant_changes_exactly_one_thing():
    base, *others = (flat(recipe) for recipe in variants().values())
    for other in others:
        assert sum(base[key] != other[key] for key in base) == 1
    assert len({str(sorted(map(str, other.items()))) for other in others}) == len(CHANGES)


@pytest.mark.parametrize(("seconds", "steps"), [(2.0, 10), (4.0, 5), (1.0, 20), (1e9, 1)])
def test_dear_steps_are_fewer(seconds, steps):
    base = [{"steps": 10, "seconds": 2.0}, {"steps": 10, "seconds": 3.0}]
    other = [{"steps": 10, "seconds": seconds}, {"steps": 10, "seconds": 5 * seconds}]
    assert steps_in_equal_time(base, other) == steps


def test_differences_are_paired_by_seed(monkeypatch):
    """A made-up machine: the seed moves every loss by far more than the change does."""

    def measure(characters, recipe, seed):
        dear = recipe.optimizer == "adamw"
        loss = 2 + seed + (0.1 + 0.01 * seed) * dear - 0.001 * (recipe.steps - 10)
        return {"seed": seed, "steps": recipe.steps, "seconds": recipe.steps * (2.0 if dear else 1.0), "val_loss": loss}

    monkeypatch.setattr(bench, "measure", measure)
    recipes = {WHOLE: Recipe(steps=10), "other": Recipe(steps=10, optimizer="adamw")}
    whole, same, tokens, time = ablate(None, recipes, seeds=(0, 1, 2))
    assert whole["difference"] == same["difference"] == 0 and whole["runs"] == same["runs"]
    assert tokens["difference"] == pytest.approx(0.11) and tokens["spread"] == pytest.approx(0.01)
    assert [run["steps"] for run in time["runs"]] == [5, 5, 5]
    assert time["difference"] == pytest.approx(0.115)


def test_the_log_is_written_for_a_text_of_ones_own(tmp_path, monkeypatch, capsys):
    base = Recipe(steps=2, batch_size=2, model={"n_layers": 2, "width": 16, "ngrams": ((2, 50),)})
    few = {name: recipe for name, recipe in variants(base).items() if name in (WHOLE, "no x0 skips")}
    monkeypatch.setattr(bench, "variants", lambda: few)
    monkeypatch.setattr(bench, "steps_in_equal_time", lambda base, other: 3 if base != other else 2)
    monkeypatch.setattr(bench, "keep_freed_memory", lambda: None)
    (tmp_path / "text.txt").write_text("To be, or not to be, that is the question.\n" * 60, encoding="utf-8")
    log = tmp_path / "ablation.jsonl"
    assert main(["bench", "ablation", "--data", str(tmp_path / "text.txt"), "--log", str(log)]) == 0
    assert "no x0 skips" in capsys.readouterr().out
    header, *lines = read_log(log)
    assert {"command", "seed", "versions", "machine"} <= set(header)
    assert [(line["variant"], line["at"]) for line in lines] == [(n, at) for n in few for at in ("tokens", "time")]
    assert [run["tokens"] for run in lines[0]["runs"]] == [2 * 2 * CONTEXT] * 3
    assert [run["steps"] for run in lines[3]["runs"]] == [3] * 3
