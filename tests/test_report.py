"""The figures of the report, against models and worlds whose figures are known beforehand."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from shared.app import report
from shared.app.report import (
    ANSWER_FIGURES,
    BEYOND,
    STORY,
    answer_all,
    corpus_of,
    evaluate_model,
    floor_of,
    instruction_figures,
    loss_figures,
    questions_of,
    sample_texts,
    story_figures,
    text_before,
    wilson_interval,
)
from shared.corpora import Corpus, Turn, load_corpus
from shared.errors import CourseError
from shared.model.gpt import GPT, GPTConfig, LanguageModel
from shared.text.bpe import BPETokenizer
from shared.text.template import END, SPECIAL_TOKENS, render_prompt, render_story
from shared.training.checkpoint import save_model


@pytest.fixture(scope="module")
def corpus():
    return load_corpus("stories-small", stories=200, seed=5)


@pytest.fixture(scope="module")
def tokenizer(corpus):
    return BPETokenizer.train(corpus.train[:50], 400, SPECIAL_TOKENS)


class Uniform(LanguageModel):
    """Believes every token equally likely, everywhere."""

    def __init__(self, vocab_size, context):
        super().__init__()
        self.config = GPTConfig(vocab_size, context, n_layers=1, n_heads=1, width=1)
        self.weight = nn.Parameter(torch.zeros(()))

    def forward(self, ids, cache=None):
        return self.weight + torch.zeros(*ids.shape, self.config.vocab_size)


class Memory:
    """A cache that keeps the ids themselves."""

    def __init__(self):
        self.ids, self.starts = None, None


class Parrot(LanguageModel):
    """Continues the rows that it knows with certainty, and says token 0 to everything else."""

    def __init__(self, rows, vocab_size, context):
        super().__init__()
        self.config = GPTConfig(vocab_size, context, n_layers=1, n_heads=1, width=1)
        self.weight = nn.Parameter(torch.zeros(()))
        self.next_token = {tuple(row[:i]): row[i] for row in rows for i in range(1, len(row))}

    def new_cache(self, capacity=None):
        return Memory()

    def forward(self, ids, cache=None):
        cache.ids = ids if cache.ids is None else torch.cat([cache.ids, ids], dim=1)
        starts = torch.zeros(len(ids), dtype=int) if cache.starts is None else cache.starts
        logits = torch.full((*ids.shape, self.config.vocab_size), -1e9)
        for row, start, out in zip(cache.ids.tolist(), starts.tolist(), logits, strict=True):
            out[-1, self.next_token.get(tuple(row[start:]), 0)] = 0
        return logits


def test_the_loss_of_a_uniform_model_is_the_logarithm_of_the_vocabulary(corpus, tokenizer):
    figures = loss_figures(Uniform(tokenizer.vocab_size, 300), tokenizer, corpus, texts=3)
    texts = corpus.val[:3]
    tokens = sum(len(tokenizer.encode(text)) + 1 for text in texts)  # the end of a text is predicted too
    n_bytes = sum(len(text.encode()) for text in texts)
    assert figures["val_loss"] == pytest.approx(math.log(tokenizer.vocab_size), rel=1e-6)
    assert figures["heldout_loss"] == pytest.approx(math.log(tokenizer.vocab_size), rel=1e-6)
    assert figures["bits_per_byte"] == pytest.approx(tokens * math.log2(tokenizer.vocab_size) / n_bytes, rel=1e-6)


def test_the_floor_is_of_the_same_stories_in_the_same_tokens(corpus, tokenizer):
    texts = corpus.val[:3]
    nats = -sum(corpus.world.log_probability(text) for text in texts)
    tokens = sum(len(tokenizer.encode(text)) + 1 for text in texts)
    assert floor_of(corpus.world, texts, tokenizer, "val") == pytest.approx(nats / tokens)
    assert 0 < floor_of(corpus.world, corpus.heldout, tokenizer, "heldout") < math.inf
    assert floor_of(None, texts, tokenizer, "val") is None


def test_a_parrot_of_one_story_is_accepted_and_neither_distinct_nor_novel(corpus, tokenizer):
    rows = [render_story(tokenizer, corpus.train[7])]
    parrot = Parrot(rows, tokenizer.vocab_size, 400)
    assert sample_texts(parrot, tokenizer, 3, seed=0) == [corpus.train[7]] * 3
    figures = story_figures(parrot, tokenizer, corpus, 5, seed=0)
    assert figures == {"story_rate": 1.0, "stories": 5, "distinct": 0.2, "novel": 0.0}
    unseen = Parrot([render_story(tokenizer, corpus.val[0])], tokenizer.vocab_size, 400)
    assert story_figures(unseen, tokenizer, corpus, 4, seed=0)["novel"] == 1.0


def test_a_story_that_breaks_off_or_never_ends_does_not_count(corpus, tokenizer):
    row = render_story(tokenizer, corpus.train[7])
    cut = Parrot([row[:40] + row[-1:]], tokenizer.vocab_size, 400)
    assert story_figures(cut, tokenizer, corpus, 2, seed=0)["story_rate"] == 0
    endless = Parrot([row], tokenizer.vocab_size, len(row) - 2)
    assert sample_texts(endless, tokenizer, 2, seed=0) == [None, None]
    assert story_figures(endless, tokenizer, corpus, 2, seed=0)["distinct"] is None


def test_text_before_its_stop_token(tokenizer):
    end, user = tokenizer.special_tokens[END], tokenizer.special_tokens["<|user|>"]
    ids = tokenizer.encode("One day")
    assert text_before(tokenizer, [*ids, end, *ids, end], end) == "One day"
    assert text_before(tokenizer, ids, end) is None
    assert text_before(tokenizer, [*ids, user, end], end) is None
    assert text_before(tokenizer, [end], end) == ""


def test_every_turn_is_asked_with_the_known_answers_before_it():
    first, second, third = (Turn("who", f"who {n}", f"answer {n}") for n in range(3))
    assert questions_of([(first, second), (third,)]) == [((), first), ((first,), second), ((), third)]


def test_accuracy_counts_right_answers_by_kind(corpus, tokenizer):
    """A parrot that knows the answers to every second question: exactly those count."""
    end = tokenizer.special_tokens[END]
    asked = questions_of(corpus.world.conversations(20, 1, "test"))
    known = {
        number: [*render_prompt(tokenizer, history, turn.user), *tokenizer.encode(turn.assistant), end]
        for number, (history, turn) in enumerate(asked)
        if number % 2 == 0
    }
    parrot = Parrot(known.values(), tokenizer.vocab_size, max(map(len, known.values())) + 60)
    answers = answer_all(parrot, tokenizer, asked)
    prompts = [(history, turn.user) for history, turn in asked]
    for number, ((_, turn), answer) in enumerate(zip(asked, answers, strict=True)):
        if number in known and prompts.count(prompts[number]) == 1:
            assert answer == turn.assistant
    figures = instruction_figures(parrot, tokenizer, corpus, 20, seed=1)
    assert figures["instructions"] == len(asked)
    # the same question may be asked twice, so a known one may answer another
    right = [turn.kind for (_, turn), answer in zip(asked, answers, strict=True) if corpus.world.is_right(turn, answer)]
    assert 0.8 * len(known) <= len(right) < len(asked)
    assert figures["instruction_accuracy"] == len(right) / len(asked)
    for kind in {turn.kind for _, turn in asked}:
        total = sum(turn.kind == kind for _, turn in asked)
        assert figures[f"accuracy_{kind}"] == right.count(kind) / total and figures[f"count_{kind}"] == total


# ---- answers by hand, whose figures are counted by hand

REFUSAL = "I only know my small world, so I cannot answer that. Ask me for a story."


class HandMade:
    """A world that asks what it is given, and marks as the real one does."""

    def __init__(self, world, talks):
        self.is_right, self.talks = world.is_right, talks

    def conversations(self, n, seed, split="train"):
        assert split == "test"
        return self.talks


def figures_of(monkeypatch, corpus, answered):
    """The figures of conversations in which each turn comes with a model's answer to it."""
    world = HandMade(corpus.world, [tuple(turn for turn, _ in talk) for talk in answered])
    passes = []

    def by_hand(model, tokenizer, asked, watch):
        passes.append(asked)
        return [answer for talk in answered for _, answer in talk]

    monkeypatch.setattr(report, "answer_all", by_hand)
    figures = instruction_figures(None, None, replace(corpus, world=world), len(answered), seed=0)
    assert passes == [questions_of(world.talks)]  # everything comes from one pass of answering
    return figures


def test_every_figure_of_answers_that_were_made_by_hand(corpus, monkeypatch):
    story = next(text for text in corpus.train if "lantern" in text)
    another = next(text for text in corpus.train if "lantern" not in text)
    assert corpus.world.accepts(story) and corpus.world.accepts(another)
    wish = Turn("story", "Tell me a story about a lantern.", story)
    who, colour = Turn("who", "Who was glad?", "Tom the fox."), Turn("colour", "What colour was it?", "It was red.")
    where = Turn("where", "Where did they meet?", "At the mill.")
    capital = Turn("unknown", "What is the capital of Spain?", REFUSAL)
    hello, name = Turn("greeting", "Hello", "Hello. A story?"), Turn("identity", "Who are you?", "A model.")
    figures = figures_of(
        monkeypatch,
        corpus,
        [
            [(wish, story), (who, "Tom the fox."), (where, "At the lake.")],
            [(wish, another)],  # a good story, but not the one that was wished
            [(wish, story[: len(story) // 2])],  # breaks off
            [(wish, REFUSAL)],
            [(who, "Tom the fox."), (colour, REFUSAL)],
            [(capital, REFUSAL)],
            [(capital, REFUSAL)],
            [(capital, "Madrid.")],  # even a true answer is none that it can know
            [(hello, "Hello. A story?")],
            [(name, REFUSAL)],
        ],
    )
    expected = {
        "instruction_accuracy": 6 / 13,
        "instructions": 13,
        "instruction_accuracy_low": pytest.approx(0.2321, abs=5e-5),  # Wilson (1927), solved by hand for 6 of 13
        "instruction_accuracy_high": pytest.approx(0.7086, abs=5e-5),
        "later_turns": 3,
        "later_turns_accuracy": 1 / 3,
        "story_requests": 4,
        "story_requests_obeyed": 1 / 4,
        "beyond_world": 3,
        "beyond_world_refused": 2 / 3,
        "within_world": 10,
        "within_world_refused": 3 / 10,
    }
    counts = {"colour": (0, 1), "greeting": (1, 1), "identity": (0, 1), "story": (1, 4), "unknown": (2, 3)}
    counts |= {"where": (0, 1), "who": (2, 2)}
    for kind, (right, asked) in counts.items():
        expected |= {f"accuracy_{kind}": right / asked, f"count_{kind}": asked}
    assert figures == expected and list(figures) == list(expected)


def test_the_interval_holds_the_share_even_where_none_or_all_are_right(corpus, monkeypatch):
    hello = Turn("greeting", "Hello", "Hello. A story?")
    for n in (5, 13, 41):
        for answer, right in (("Good day.", 0.0), (hello.assistant, 1.0)):
            figures = figures_of(monkeypatch, corpus, [[(hello, answer)]] * n)
            low, high = figures["instruction_accuracy_low"], figures["instruction_accuracy_high"]
            assert 0 <= low <= figures["instruction_accuracy"] == right <= high <= 1 and high - low > 0.05


def test_a_share_of_nothing_is_null_and_its_count_zero(corpus, monkeypatch):
    hello = Turn("greeting", "Hello", "Hello. A story?")
    figures = figures_of(monkeypatch, corpus, [[(hello, "Hello. A story?")], [(hello, REFUSAL)]])
    assert figures["instruction_accuracy"] == 1 / 2 and figures["within_world"] == 2
    for count, share in {
        "later_turns": "later_turns_accuracy",
        "story_requests": "story_requests_obeyed",
        "beyond_world": "beyond_world_refused",
    }.items():
        assert figures[count] == 0 and figures[share] is None
    assert figures["within_world_refused"] is None  # nothing asked says what a refusal is


@pytest.mark.parametrize("name", ["stories-small", "stories-full"])
def test_only_what_the_world_cannot_answer_has_the_refusal_for_an_answer(name):
    world = load_corpus(name, stories=1).world
    turns = [turn for split in ("train", "test") for _, turn in questions_of(world.conversations(300, 2, split))]
    assert {STORY, BEYOND} < {turn.kind for turn in turns}
    assert {turn.assistant for turn in turns if turn.kind == BEYOND} == {REFUSAL}
    assert all((turn.assistant == REFUSAL) == (turn.kind == BEYOND) for turn in turns)
    assert all(world.accepts(turn.assistant) == (turn.kind == STORY) for turn in turns)


def test_real_text_has_figures_of_its_questions_and_none_of_a_world(monkeypatch):
    monkeypatch.setattr(
        report, "answer_all", lambda model, tokenizer, asked, watch: [turn.assistant for _, turn in asked]
    )
    text = "\n\n".join(
        f"The {colour} boat came home before the storm, and the {colour} sail was wet. Nobody had seen it leave."
        for colour in ("red", "green", "yellow", "white")
    )
    figures = instruction_figures(None, None, Corpus("boats", "a test", [text], [text]), 40, seed=0)
    for name in ("instruction_accuracy", "later_turns_accuracy", "instruction_accuracy_high"):
        assert figures[name] == 1
    assert 0.9 < figures["instruction_accuracy_low"] < 1 and 0 < figures["later_turns"] < figures["instructions"]
    assert sum(value for key, value in figures.items() if key.startswith("count_")) == figures["instructions"] >= 40
    nulls = [key for key, value in figures.items() if value is None]
    assert (
        nulls == [key for key in ANSWER_FIGURES if key.startswith(("story_", "beyond_", "within_"))] and len(nulls) == 6
    )


def test_a_question_without_room_for_an_answer_is_wrong_and_no_crash(corpus, tokenizer):
    model = GPT(GPTConfig(tokenizer.vocab_size, context=32, n_layers=1, n_heads=1, width=8))
    asked = questions_of(corpus.world.conversations(10, 1, "test"))
    too_long = [i for i, (past, turn) in enumerate(asked) if len(render_prompt(tokenizer, past, turn.user)) >= 32]
    answers = answer_all(model, tokenizer, asked)
    assert len(answers) == len(asked) and too_long and all(answers[i] == "" for i in too_long)


def test_evaluate_is_flat_complete_and_the_same_each_time(corpus, tokenizer, tmp_path):
    torch.manual_seed(0)
    model = GPT(GPTConfig(tokenizer.vocab_size, context=64, n_layers=1, n_heads=1, width=8))
    recipe = {"name": "stories-small", "stories": 200, "seed": 5, "world": None}
    save_model(tmp_path, model, tokenizer, {"corpus": recipe})
    figures = evaluate_model(tmp_path, stories=3, questions=8, texts=5)
    assert figures == evaluate_model(tmp_path, stories=3, questions=8, texts=5, corpus=corpus)
    names = ["val_loss", "entropy_floor", "bits_per_byte", "heldout_loss", "heldout_floor", "story_rate", "stories"]
    names += ["distinct", "novel", *ANSWER_FIGURES]
    assert list(figures)[: len(names)] == names
    kinds = list(figures)[len(names) :]
    assert [name.partition("_")[0] for name in kinds] == ["accuracy", "count"] * (len(kinds) // 2)
    assert figures["beyond_world"] + figures["within_world"] == figures["instructions"]
    assert all(value is None or isinstance(value, int | float) for value in figures.values())


def test_a_corpus_without_a_world_has_null_figures(tokenizer, tmp_path):
    model = GPT(GPTConfig(tokenizer.vocab_size, context=64, n_layers=1, n_heads=1, width=8))
    save_model(tmp_path, model, tokenizer, {})
    text = Corpus("letters", "a test", ["Dear reader, " * 9], ["Dear friend, " * 3])
    figures = evaluate_model(tmp_path, corpus=text)
    numbers = {"val_loss", "bits_per_byte"}
    assert {name for name, value in figures.items() if value is not None} == numbers
    assert set(ANSWER_FIGURES) < set(figures)
    with pytest.raises(CourseError, match="--corpus"):
        evaluate_model(tmp_path)


def test_the_corpus_of_a_model_is_loaded_as_it_was(corpus):
    again = corpus_of({"corpus": {"name": "stories-small", "stories": 200, "seed": 5, "world": None}})
    assert (again.train, again.val, again.heldout) == (corpus.train, corpus.val, corpus.heldout)


def test_wilson_interval_against_published_values():
    # Newcombe (1998), "Two-sided confidence intervals for the single proportion", table I, method 3
    for (right, n), interval in {
        (81, 263): (0.2553, 0.3662),
        (15, 148): (0.0624, 0.1605),
        (0, 20): (0.0, 0.1611),
        (1, 29): (0.0061, 0.1718),
    }.items():
        assert wilson_interval(right, n) == pytest.approx(interval, abs=5e-5)
    assert wilson_interval(0, 0) == (0.0, 1.0)
