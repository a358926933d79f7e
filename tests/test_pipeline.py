"""The main job on the smallest preset: from a corpus to a model that answers, with interruptions in between."""

import hashlib
import json
import random
import subprocess
import sys
from dataclasses import asdict, replace

import pytest
import torch

from shared.app import pipeline
from shared.app.pipeline import (
    MOST_EPOCHS,
    Recipe,
    finetune,
    main_job,
    pretrain,
    pretraining_documents,
    scaled,
    tokenizer_texts,
    train_tokenizer,
)
from shared.app.summary import FIVE_KINDS, choose_five
from shared.corpora import Corpus, Turn, load_corpus
from shared.errors import CourseError
from shared.text.template import END, END_OF_TEXT, USER
from shared.training.checkpoint import RESUME, load_model
from shared.training.runlog import find_preset, read_log
from shared.training.train import TrainingInterrupted

RECIPE = Recipe(corpus="stories-small", preset="tiny", stories=120, seed=3)


def weights(directory):
    return hashlib.sha256((directory / "model.safetensors").read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    """A finished main job: (its folder, its figures, what it said)."""
    models = tmp_path_factory.mktemp("models")
    said = []
    figures = main_job(RECIPE, models, log=models / "log.jsonl", say=said.append)
    return models, figures, "\n".join(said)


@pytest.fixture
def poem(tmp_path):
    path = tmp_path / "poem.txt"
    path.write_text("".join(f"Line {n}: the sea was {n % 7} shades of grey.\n" for n in range(300)), encoding="utf-8")
    return path


def test_the_main_job_leaves_two_models_and_nothing_unfinished(job):
    models, _, _ = job
    parts = ["config.json", "model.safetensors", "tokenizer.json", "training.json"]
    for stage in ("pretrained", "chat"):
        assert sorted(path.name for path in (models / stage).iterdir()) == parts
    assert not (models / "run.json").exists()
    _, _, info = load_model(models / "chat")
    assert info["corpus"] == {"name": "stories-small", "stories": 120, "seed": 3, "world": None}
    assert info["instructions"] and info["preset"] == "tiny" and info["seed"] == 3
    assert info["pretraining"]["val_losses"][-1] == [20, info["pretraining"]["val_loss"]]
    assert info["pretraining"]["train_loss"] > 0 and "train_loss" in info["tuning"]
    assert weights(models / "pretrained") != weights(models / "chat")


ON_SOLUTIONS = """
import json, sys
from pathlib import Path
from shared.app.pipeline import Recipe, main_job
from shared.course.mine import install, load_mine
install(load_mine(notebook="solutions.ipynb"))
main_job(Recipe(**json.loads(sys.argv[1])), Path(sys.argv[2]), say=lambda line: None)
"""


def test_a_main_job_on_the_solutions_of_all_exercises_gives_bitwise_the_same(job, tmp_path):
    command = [sys.executable, "-c", ON_SOLUTIONS, json.dumps(asdict(RECIPE)), str(tmp_path)]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    mine, total = map(int, said.removeprefix("yours: ").split(" (")[0].split(" of "))
    assert mine == total > 30 and "refused" not in said
    for stage in ("pretrained", "chat"):
        assert weights(tmp_path / stage) == weights(job[0] / stage)


def test_the_summary_has_five_answers_the_floor_and_the_places(job):
    models, figures, said = job
    assert [answer["kind"] for answer in figures["answers"]] == list(FIVE_KINDS)
    for answer in figures["answers"]:
        assert answer["question"].split()[0] in said
    for text in (f"{figures['val_loss']:.4f}", f"{figures['entropy_floor']:.4f}", "95 % interval"):
        assert text in said
    assert str(models / "pretrained") in said and f"chat --model {models / 'chat'}" in said
    assert json.loads((models / "report.json").read_text(encoding="utf-8")) == figures
    assert figures["val_loss"] > figures["entropy_floor"]


def test_every_step_is_logged(job):
    models, _, _ = job
    pretraining = [record for record in read_log(models / "log.jsonl") if "loss" in record]
    tuning = [record for record in read_log(models / "log-tuning.jsonl") if "loss" in record]
    preset = find_preset("tiny")
    assert [record["step"] for record in pretraining] == list(range(1, preset.pretrain["steps"] + 1))
    assert len(tuning) == preset.finetune["steps"]


def interrupt_after(monkeypatch, step):
    """Press Ctrl-C during a step of the next training."""
    import shared.training.train as train_module

    original, calls = train_module.train_step, []

    def train_step(run, batch, *more):
        calls.append(run.step)
        if len(calls) == step:
            import signal

            signal.raise_signal(signal.SIGINT)
        return original(run, batch, *more)

    monkeypatch.setattr(train_module, "train_step", train_step)
    return lambda: monkeypatch.setattr(train_module, "train_step", original)


@pytest.mark.parametrize("step", [7, 23])  # in pretraining, which has 20 steps, and in tuning
def test_an_interrupted_main_job_goes_on_and_ends_with_the_same_weights(job, tmp_path, monkeypatch, step):
    finished, figures, _ = job
    undo = interrupt_after(monkeypatch, step)
    with pytest.raises(TrainingInterrupted):
        main_job(RECIPE, tmp_path, say=lambda line: None)
    undo()
    stage = "pretrained" if step < 20 else "chat"
    assert (tmp_path / stage / RESUME).exists() and (tmp_path / "run.json").exists()

    with pytest.raises(CourseError, match="seed was 3") as error:  # nothing is lost by accident
        main_job(replace(RECIPE, seed=4), tmp_path, say=lambda line: None)
    assert "\n" not in str(error.value) and "--fresh" in str(error.value)
    assert (tmp_path / stage / RESUME).exists()

    said = []
    assert main_job(RECIPE, tmp_path, say=said.append) == figures
    assert any("going on after step" in line for line in said)
    for stage in ("pretrained", "chat"):
        assert weights(tmp_path / stage) == weights(finished / stage)
        assert not (tmp_path / stage / RESUME).exists()


def test_fresh_gives_up_what_was_interrupted_and_a_finished_job_starts_anew(poem, tmp_path, monkeypatch):
    recipe = Recipe(corpus=str(poem), preset="tiny", steps=6)
    undo = interrupt_after(monkeypatch, 3)
    with pytest.raises(TrainingInterrupted):
        main_job(recipe, tmp_path, say=lambda line: None)
    undo()
    said = []
    main_job(replace(recipe, seed=1), tmp_path, fresh=True, say=said.append)
    first = weights(tmp_path / "pretrained")
    assert not any("going on" in line for line in said)
    main_job(replace(recipe, seed=2), tmp_path, say=said.append)
    assert not any("going on" in line for line in said) and weights(tmp_path / "pretrained") != first


def test_a_text_that_changed_since_the_interruption_is_noticed(poem, tmp_path, monkeypatch):
    recipe = Recipe(corpus=str(poem), preset="tiny", steps=6)
    undo = interrupt_after(monkeypatch, 3)
    with pytest.raises(TrainingInterrupted):
        main_job(recipe, tmp_path, say=lambda line: None)
    undo()
    poem.write_text(poem.read_text(encoding="utf-8").replace("grey", "blue"), encoding="utf-8")
    with pytest.raises(CourseError, match="sha256 was"):
        main_job(recipe, tmp_path, say=lambda line: None)
    with pytest.raises(CourseError, match="another run"):
        pretrain(recipe, tmp_path / "pretrained", recipe.load_corpus(), resume=True, say=lambda line: None)


def test_real_text_is_pretrained_sampled_and_tuned_on_questions_by_rule(tmp_path):
    said, path = [], tmp_path / "notes.txt"
    talk = "Hello, good day. Who are you? I am a small language model that has read notes.txt. Show me a part of it, "
    talk += "and ask me about it."
    path.write_text("\n\n".join(f"Note {n} says: {talk}" for n in range(300)), encoding="utf-8")
    figures = main_job(Recipe(corpus=str(path), preset="tiny"), tmp_path, say=said.append)
    assert figures["entropy_floor"] is None and figures["bits_per_byte"] > 0 and len(figures["samples"]) == 3
    assert figures["instructions"] >= 200 and 0 <= figures["instruction_accuracy"] <= 1
    assert figures["story_requests"] is None and figures["beyond_world"] is None
    assert {answer["kind"] for answer in figures["answers"]} <= {"greeting", "identity", "after", "missing", "words"}
    assert "tuned on questions about the text" in "\n".join(said) and not (tmp_path / "run.json").exists()
    _, _, info = load_model(tmp_path / "chat")
    assert info["instructions"] and info["tuning"]["training"]["steps"] == find_preset("tiny").finetune["steps"]


def test_questions_that_do_not_fit_the_context_leave_the_model_pretrained(poem, tmp_path):
    said = []
    figures = main_job(Recipe(corpus=str(poem), preset="tiny", steps=4), tmp_path, say=said.append)
    assert "would fit" in "\n".join(said) and not (tmp_path / "chat").exists() and "samples" in figures


def test_a_text_that_gives_nothing_to_ask_about_is_plainly_not_tuned(tmp_path):
    said, path = [], tmp_path / "letters.txt"
    path.write_text("".join(random.Random(0).choices("abcdef", k=30_000)), encoding="utf-8")
    figures = main_job(Recipe(corpus=str(path), preset="tiny"), tmp_path, say=said.append)
    assert "nothing to ask about" in "\n".join(said) and not (tmp_path / "chat").exists()
    assert "instruction_accuracy" not in figures and len(figures["samples"]) == 3
    with pytest.raises(CourseError, match="nothing to ask about"):
        finetune(tmp_path / "pretrained", tmp_path / "chat", say=lambda line: None)


def test_resuming_where_nothing_was_begun_is_an_error(tmp_path):
    with pytest.raises(CourseError, match="--resume"):
        pretrain(RECIPE, tmp_path, Corpus("x", "x", ["x"], ["x"]), resume=True)


def test_tuning_never_reads_the_conversations_of_the_test(job):
    world = load_corpus("stories-small", stories=1).world
    learnt = {talk[0].user for talk in world.conversations(400, 4)}  # seed 3 + 1, as the recipe has it
    asked = {talk[0].user for talk in world.conversations(200, 3, "test") if "\n" in talk[0].user}
    assert asked and not learnt & asked


def test_pretraining_text_is_stories_and_conversations(job):
    models, _, _ = job
    _, tokenizer, _ = load_model(models / "pretrained")
    corpus = RECIPE.load_corpus()
    documents = pretraining_documents(corpus, tokenizer, seed=3)
    starts = [document[0] for document in documents]
    assert starts.count(tokenizer.special_tokens[END_OF_TEXT]) == 120
    talks = starts.count(tokenizer.special_tokens[USER])
    assert talks == len(documents) - 120
    assert 0.9 < talks / (120 * (pipeline.LESSONS_SHARE + pipeline.CONVERSATIONS_SHARE)) <= 1
    assert tokenizer.decode(documents[0][1:-1]) == corpus.train[0]
    assert all(document[-1] == tokenizer.special_tokens[END] for document in documents[120:])


def test_the_tokenizer_reads_from_all_over_a_large_corpus(monkeypatch):
    monkeypatch.setattr(pipeline, "TOKENIZER_TEXT", 1000)
    many = Corpus("many", "", [f"text {n:04}" for n in range(1000)], [])
    texts = tokenizer_texts(many, seed=0)
    assert texts[0] == "text 0000" and texts[-1] >= "text 0990" and 1000 <= sum(map(len, texts)) <= 1200
    few = Corpus("few", "", ["a" * 5000, "b" * 5000], [])
    assert tokenizer_texts(few, seed=0) == ["a" * 500, "b" * 500]
    tokenizer = train_tokenizer(few, 261, seed=0)
    assert tokenizer.vocab_size == 261


def test_a_small_real_text_is_not_read_more_often_than_it_bears(poem):
    preset = find_preset("laptop")

    class Rows:
        n_rows = 20

    corpus = load_corpus(poem)
    config = pipeline.pretraining_config(preset, Recipe(), corpus, Rows)
    assert config.steps * config.batch_size <= MOST_EPOCHS * Rows.n_rows < (config.steps + 1) * config.batch_size
    assert pipeline.pretraining_config(preset, Recipe(steps=500), corpus, Rows).steps == 500
    world = replace(corpus, world=object())
    assert pipeline.pretraining_config(preset, Recipe(), world, Rows).steps == preset.pretrain["steps"]


def test_scaled_options_keep_their_shares():
    options = {"steps": 100, "warmup": 10, "decay": 40, "batch_size": 4}
    assert scaled(options, None) == options
    assert scaled(options, 50) == {"steps": 50, "warmup": 5, "decay": 20, "batch_size": 4}


def test_five_questions_are_of_five_kinds_even_in_a_world_that_lacks_some():
    talks = [(Turn(kind, f"{kind} {n}", ""),) for n in range(3) for kind in ("what", "unknown", "who", "where", "use")]
    assert [turn.user for turn in choose_five(talks)] == ["unknown 0", "what 0", "who 0", "where 0", "use 0"]


def test_the_estimate_changes_no_weight(job):
    models, _, _ = job
    model, _, _ = load_model(models / "pretrained")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    config = pipeline.TrainConfig(**find_preset("tiny").pretrain)

    def data(step):
        return torch.zeros(4, 8, dtype=torch.int64), torch.ones(4, 8, dtype=torch.int64)

    assert pipeline.seconds_per_step(model, data, config) > 0
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
