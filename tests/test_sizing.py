"""A run of so many hours: the size that the law prefers, steps that fit, and what a resumed run keeps of it."""

import json
import signal
from dataclasses import replace
from functools import lru_cache

import numpy as np
import pytest
import torch

from shared import corpora
from shared.app import pipeline, sizing
from shared.app.cli import main
from shared.app.pipeline import Recipe, main_job
from shared.app.sizing import LADDER, LAW, TRAINING_SHARE, fit_to_time, ladder, scaled_model, tokens_per_step
from shared.corpora import DOWNLOADS, Corpus, load_corpus, settle_name
from shared.errors import CourseError
from shared.training.checkpoint import ARCHITECTURES, RESUME, load_model
from shared.training.runlog import PRESETS, find_preset
from shared.training.scaling import compute_optimal
from shared.training.train import TrainConfig, TrainingInterrupted


def parameters_of(preset, model):
    return count(preset.architecture, preset.vocab_size, tuple(model.items()))


@lru_cache
def count(architecture, vocab_size, model):
    model_class, config_class = ARCHITECTURES[architecture]
    with torch.device("meta"):  # shapes without memory
        built = model_class(config_class(vocab_size=vocab_size, **dict(model)))
    return sum(parameter.numel() for parameter in built.blocks.parameters())


@pytest.fixture
def machine(monkeypatch):
    """A machine of so many operations a second that reaches them whatever the size: 6 for a parameter and a token."""
    looked = []

    def set_speed(operations):
        def measure(preset, model):
            looked.append(model)
            parameters = parameters_of(preset, model)
            return 6 * parameters * tokens_per_step(preset) / operations, parameters

        monkeypatch.setattr(sizing, "measure", measure)
        return looked

    return set_speed


def quiet(line):
    pass


# ---- which size


@pytest.mark.parametrize("name", ["laptop", "desktop", "gpt2"])
@pytest.mark.parametrize("hours", [0.5, 2, 24])
def test_the_size_is_the_compute_optimal_one_as_far_as_the_ladder_reaches(machine, name, hours):
    preset = find_preset(name)
    models = ladder(preset.model)
    sizes = [parameters_of(preset, model) for model in models]
    for operations in np.geomspace(1e10, 1e15, 6):
        looked = machine(operations)
        looked.clear()
        try:
            found = fit_to_time(preset, hours, quiet, tuned=False)
        except CourseError:
            assert operations < 1e12  # a slow machine and a large preset
            continue
        best, _ = compute_optimal(LAW, operations * TRAINING_SHARE * 3600 * hours)
        chosen = models.index(found.model)
        nearest = int(np.abs(np.log(np.array(sizes) / best)).argmin())
        assert abs(chosen - nearest) <= 1, (operations, best, sizes[chosen])
        assert len(looked) == len({str(model) for model in looked}) <= abs(models.index(preset.model) - chosen) + 3


def test_more_time_never_buys_a_smaller_model_and_fills_itself(machine):
    preset, operations = find_preset("desktop"), 2e11
    machine(operations)
    before = 0
    for hours in (0.2, 0.5, 1, 2, 4, 8, 24, 100):
        found = fit_to_time(preset, hours, quiet, tuned=True)
        parameters = parameters_of(preset, found.model)
        assert parameters >= before
        before = parameters
        seconds = (found.steps + found.tuning_steps) * 6 * parameters * tokens_per_step(preset) / operations
        assert 0.98 <= seconds / (TRAINING_SHARE * 3600 * hours) <= 1
        assert 1 <= found.tuning_steps <= preset.finetune["steps"]
        assert 1 <= found.stories <= sizing.MOST_STORIES
        TrainConfig(**found.applied_to(preset).pretrain)


def test_text_that_is_short_bounds_the_steps_and_not_the_size(machine):
    preset = find_preset("desktop")
    machine(1e12)
    free = fit_to_time(preset, 2, quiet, tuned=False)
    bound = fit_to_time(preset, 2, quiet, tuned=False, most_tokens=1e7)
    assert bound.steps * tokens_per_step(preset) <= 1e7 < free.steps * tokens_per_step(preset)
    assert parameters_of(preset, bound.model) >= parameters_of(preset, free.model)
    assert bound.tuning_steps == 0


def test_the_reason_is_one_line_with_the_figures(machine):
    preset, said = find_preset("desktop"), []
    machine(3e11)
    found = fit_to_time(preset, 2, said.append, tuned=True)
    (line,) = said
    speed = 3e11 / 6 / parameters_of(preset, found.model)
    assert "\n" not in line and line.startswith("2 hours: ")
    assert f"{parameters_of(preset, found.model):,}" in line and f"{speed:,.0f} tokens a second" in line


def test_too_little_time_is_one_line(machine):
    machine(1e9)
    with pytest.raises(CourseError, match=r"^0\.01 hours are too short for the preset gpt2: .* smaller preset$"):
        fit_to_time(find_preset("gpt2"), 0.01, quiet, tuned=False)


@pytest.mark.parametrize("name", list(PRESETS))
def test_every_rung_can_be_built_and_none_is_larger_than_the_next(name):
    preset = find_preset(name)
    assert scaled_model(preset.model, 1.0) == preset.model
    head = preset.model.get("head_width", preset.model["width"] // preset.model["n_heads"])
    sizes = []
    for scale in LADDER:
        model = scaled_model(preset.model, scale)
        assert model.get("head_width", model["width"] / model["n_heads"]) == head
        assert model["context"] == preset.model["context"]
        assert model["n_layers"] >= 2
        sizes.append(parameters_of(preset, model))
    assert sizes == sorted(sizes) and sizes[-1] > 5 * sizes[0]
    distinct = [parameters_of(preset, model) for model in ladder(preset.model)]
    assert distinct == sorted(set(sizes))


def test_a_measurement_is_of_the_whole_batch(monkeypatch):
    asked = []

    def seconds_per_step(model, data, config):
        inputs, targets = data(0)
        assert inputs.shape == targets.shape == (config.batch_size, model.config.context)
        asked.append((model.config.width, config.batch_size))
        return 0.5

    monkeypatch.setattr(sizing, "seconds_per_step", seconds_per_step)
    preset = find_preset("desktop")
    narrow = scaled_model(preset.model, 0.25)
    seconds, parameters = sizing.measure(preset, narrow)
    rows = sizing.MEASURED_ROWS
    assert set(asked) == {(narrow["width"], rows)}
    assert seconds == 0.5 * preset.pretrain["batch_size"] / rows and parameters == parameters_of(preset, narrow)


# ---- the main job

RECIPE = Recipe(corpus="stories-small", preset="tiny", seed=3, hours=0.01)


@pytest.fixture
def slow_machine(monkeypatch):
    """A function that sets how long a step takes, for all sizes alike; without the questions at the end."""
    monkeypatch.setitem(PRESETS, "tiny", replace(PRESETS["tiny"], stories=60))
    monkeypatch.setattr(sizing, "LADDER", (0.5, 1.0, 1.5))
    monkeypatch.setattr(pipeline, "summarize_stories", lambda *arguments: {})
    monkeypatch.setattr(pipeline, "summarize_text", lambda *arguments: {})
    monkeypatch.setattr(pipeline, "begin_text", lambda *arguments: "")

    def set_seconds(seconds):
        monkeypatch.setattr(sizing, "measure", lambda preset, model: (seconds, parameters_of(preset, model)))

    return set_seconds


def stop_at(monkeypatch, step):
    """Press Ctrl-C in that step of pretraining; returns a function that lets things be."""
    import shared.training.train as train_module

    original = train_module.train_step

    def train_step(run, batch, *more):
        if run.step == step:
            signal.raise_signal(signal.SIGINT)
        return original(run, batch, *more)

    monkeypatch.setattr(train_module, "train_step", train_step)
    return lambda: monkeypatch.setattr(train_module, "train_step", original)


def test_a_resumed_run_keeps_the_sizes_that_were_decided_first(tmp_path, monkeypatch, slow_machine):
    slow_machine(1.0)
    main_job(RECIPE, tmp_path / "straight", say=quiet)
    undo = stop_at(monkeypatch, 5)
    with pytest.raises(TrainingInterrupted):
        main_job(RECIPE, tmp_path / "stopped", say=quiet)
    undo()
    plan = json.loads((tmp_path / "stopped" / "run.json").read_text())["plan"]
    slow_machine(0.1)  # another program has left the machine
    for other in (replace(RECIPE, hours=0.02), replace(RECIPE, hours=None), replace(RECIPE, hours=None, steps=5)):
        with pytest.raises(CourseError, match=r"hours was 0\.01") as error:
            main_job(other, tmp_path / "stopped", say=quiet)
        assert "\n" not in str(error.value) and (tmp_path / "stopped" / "pretrained" / RESUME).exists()
    said = []
    main_job(RECIPE, tmp_path / "stopped", say=said.append)
    assert not any("tokens a second" in line for line in said)  # nothing was measured
    assert any("going on after step 6" in line for line in said)
    for stage in ("pretrained", "chat"):
        straight, stopped = (tmp_path / job / stage / "model.safetensors" for job in ("straight", "stopped"))
        assert straight.read_bytes() == stopped.read_bytes()
    _, _, info = load_model(tmp_path / "stopped" / "chat")
    steps = info["pretraining"]["training"]["steps"], info["tuning"]["training"]["steps"]
    assert steps == (plan["sizes"]["steps"], plan["sizes"]["tuning_steps"]) and sum(steps) == 30
    assert info["hours"] == 0.01 and info["corpus"]["stories"] == plan["sizes"]["stories"]


def test_hours_suit_real_text_which_bounds_them(tmp_path, slow_machine):
    poem = tmp_path / "poem.txt"
    poem.write_text("".join(f"Line {n}: the sea was {n % 7} shades of grey.\n" for n in range(300)), encoding="utf-8")
    slow_machine(0.01)
    main_job(Recipe(corpus=str(poem), preset="tiny", hours=1), tmp_path / "models", say=quiet)
    model, _, info = load_model(tmp_path / "models" / "pretrained")
    rows = 300 * 38 / pipeline.BYTES_A_TOKEN / model.config.context
    assert info["pretraining"]["training"]["steps"] <= pipeline.MOST_EPOCHS * rows / 4
    assert model.config.n_layers > find_preset("tiny").model["n_layers"]  # the time went into a larger model


@pytest.mark.parametrize(
    ("options", "what"),
    [("--hours 0", "above 0"), ("--hours -1", "above 0"), ("--hours nan", "out of range"), ("--hours inf", "1000"),
     ("--hours 9999", "up to 1000"), ("--hours many", "not a number"), ("--hours 2 --steps 100", "leave out one"),
     ("--steps 100 --hours 2", "leave out one")],
)  # fmt: skip
def test_nonsense_is_one_line_and_leaves_nothing(tmp_path, monkeypatch, capsys, options, what):
    monkeypatch.chdir(tmp_path)
    try:
        code = main(["run", "--preset", "tiny", *options.split()])
    except SystemExit as stop:  # argparse's own way
        code = stop.code
    out, err = capsys.readouterr()
    assert code == 2 and out == "" and what in err and err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


# ---- the corpus "text"


@pytest.fixture
def network(monkeypatch):
    """A function that says whether TinyStories can be fetched; it counts how often that was tried."""
    tried = []

    def set_network(there):
        def fetch(file):
            tried.append(file.name)
            if not there:
                raise CourseError(f"{file.name} could not be fetched")

        monkeypatch.setattr(corpora, "fetch", fetch)
        return tried

    return set_network


def test_text_is_tinystories_where_it_can_be_had(network):
    said = []
    tried = network(True)
    assert settle_name("text", said.append) == "tinystories-part" and not said
    assert tried == [file.name for file in DOWNLOADS["tinystories-part"].files]
    network(False)
    assert settle_name("text", said.append) == "python-code"
    (line,) = said
    assert "python-code" in line and "could not be fetched" in line
    tried.clear()
    assert settle_name("stories") == "stories" and not tried


def test_a_run_on_text_keeps_its_corpus_when_the_network_comes_back(tmp_path, monkeypatch, network, slow_machine):
    import shared.corpora.python_text as python_text

    code = Corpus("python-code", "some", [f"def f{n}(x):\n    return x + {n}\n" for n in range(200)], ["x = 1\n" * 50])
    monkeypatch.setattr(python_text, "load_python_code", lambda: code)
    network(False)
    recipe = Recipe(corpus="text", preset="tiny", steps=12)
    undo = stop_at(monkeypatch, 10)
    with pytest.raises(TrainingInterrupted):
        main_job(recipe, tmp_path, say=quiet)
    undo()
    tried = network(True)
    tried.clear()
    said = []
    main_job(recipe, tmp_path, say=said.append)
    assert any("going on after step" in line for line in said) and not tried
    assert load_model(tmp_path / "pretrained")[2]["corpus"]["name"] == "python-code"


def test_of_tinystories_part_only_whole_stories_are_read(tmp_path, monkeypatch):
    part = DOWNLOADS["tinystories-part"]
    stories = [f"Once there were {n} \N{FOX FACE}s.\nThey were kind.\n" for n in range(50)]
    written = "".join(f"{story}<|endoftext|>\n" for story in stories)
    for file in part.files:
        (tmp_path / file.name).write_text(written, encoding="utf-8")
    monkeypatch.setenv("COURSE_DATA", str(tmp_path))
    assert load_corpus("tinystories-part").train == stories  # a file that is shorter than that is read whole
    for most in range(500, 600):
        monkeypatch.setitem(DOWNLOADS, "tinystories-part", replace(part, most=most))
        corpus = load_corpus("tinystories-part")
        assert corpus.val == stories and corpus.train == stories[: len(corpus.train)]
        assert len(corpus.train) > 7 and len("".join(corpus.train).encode()) <= most
