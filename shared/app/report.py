"""How good a trained model is: its loss beside the floor, its stories before the judge, its answers to known questions.

Every figure is computed in float32 and depends on (model, settings) alone.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shared.app.chat import TEMPERATURE, TOP_P
from shared.corpora import Conversation, Corpus, Turn, Watch, World, load_corpus, silent
from shared.corpora.instructions import examiner_of
from shared.errors import CourseError
from shared.model.generate import generate
from shared.model.gpt import LanguageModel
from shared.text.bpe import BPETokenizer
from shared.text.template import END, END_OF_TEXT, render_prompt, render_story
from shared.training.checkpoint import load_model
from shared.training.device import best_device
from shared.training.evaluate import bits_per_byte, document_nats, entropy_floor

BATCH = 64  # texts that are generated side by side
STORY, BEYOND = "story", "unknown"  # kinds of question: tell a story; and what the world cannot answer
ANSWER_FIGURES = (
    "instruction_accuracy",
    "instructions",
    "instruction_accuracy_low",
    "instruction_accuracy_high",
    "later_turns",
    "later_turns_accuracy",
    "story_requests",
    "story_requests_obeyed",
    "beyond_world",
    "beyond_world_refused",
    "within_world",
    "within_world_refused",
)  # of every corpus; where it has questions, those by kind come after

Figures = dict[str, float | int | None]  # one flat object; None where a corpus allows no such figure


def open_model(directory: str | Path) -> tuple[LanguageModel, BPETokenizer, dict[str, Any]]:
    """A saved model, on the fastest device there is, with its tokenizer and its training.json."""
    model, tokenizer, info = load_model(directory)
    assert isinstance(model, LanguageModel)  # all known architectures are
    return model.to(best_device()), tokenizer, info


def evaluate_model(
    directory: str | Path,
    *,
    corpus: Corpus | None = None,
    stories: int = 256,
    questions: int = 256,
    texts: int = 500,
    seed: int = 0,
    watch: Watch = silent,
) -> Figures:
    """Measure the model in a directory on the corpus it was trained on, or on another; return one flat dict.

    stories: how many to generate for the judge; questions: how many test conversations; texts: how many validation
    documents at most. Losses and floors are in nats per token; shares are from 0 to 1, and beside each stands of how
    many. A figure that the corpus does not allow is None: story figures without a world, entropy_floor for text whose
    source is unknown, a share of nothing. What the answers tell: see `instruction_figures`.
    Raises CourseError when the directory holds no model, or its training.json names no corpus and none is given.
    """
    model, tokenizer, info = open_model(directory)
    corpus = corpus or corpus_of(info, watch)
    figures: Figures = loss_figures(model, tokenizer, corpus, texts, watch)
    figures |= story_figures(model, tokenizer, corpus, stories, seed, watch)
    figures |= instruction_figures(model, tokenizer, corpus, questions, seed, watch)
    return figures


def corpus_of(info: dict[str, Any], watch: Watch = silent) -> Corpus:
    """The corpus that a model's training.json names."""
    recipe = info.get("corpus")
    if not isinstance(recipe, dict) or "name" not in recipe:
        raise CourseError("training.json names no corpus: say which one to measure on with --corpus")
    return load_corpus(
        recipe["name"],
        stories=recipe.get("stories", 50_000),
        seed=recipe.get("seed", 0),
        world=recipe.get("world"),
        watch=watch,
    )


def loss_figures(
    model: LanguageModel, tokenizer: BPETokenizer, corpus: Corpus, texts: int, watch: Watch = silent
) -> Figures:
    """Losses on unseen text, beside the least that any model could reach."""
    val = corpus.val[:texts]
    nats, tokens = text_nats(model, tokenizer, val, watch)
    heldout = corpus.heldout[:texts]
    heldout_nats, heldout_tokens = text_nats(model, tokenizer, heldout, watch) if heldout else (math.nan, 0)
    return {
        "val_loss": nats / tokens,
        "entropy_floor": floor_of(corpus.world, val, tokenizer, "val"),
        "bits_per_byte": bits_per_byte(nats, sum(len(text.encode("utf-8")) for text in val)),
        "heldout_loss": heldout_nats / heldout_tokens if heldout else None,
        "heldout_floor": floor_of(corpus.world, heldout, tokenizer, "heldout"),
    }


def text_nats(
    model: LanguageModel, tokenizer: BPETokenizer, texts: Sequence[str], watch: Watch = silent
) -> tuple[float, int]:
    """The total loss of the texts in nats, each read from its start token to its end, and the tokens predicted."""
    total, predicted = 0.0, 0
    for first in watch(range(0, len(texts), BATCH), "reading unseen texts"):
        documents = [render_story(tokenizer, text) for text in texts[first : first + BATCH]]
        nats, counts = document_nats(model, documents, precision="fp32")
        total += float(nats.sum())
        predicted += int(counts.sum())
    return total, predicted


def floor_of(world: World | None, texts: Sequence[str], tokenizer: BPETokenizer, split: str) -> float | None:
    """The mean -ln p of the texts under the grammar that wrote them, per token that a model has to predict."""
    if world is None or not texts:
        return None
    source = "heldout" if split == "heldout" else "train"  # val has the distribution of training
    tokens = [len(render_story(tokenizer, text)) - 1 for text in texts]
    return entropy_floor([world.log_probability(text, source) for text in texts], tokens)


def sample_texts(
    model: LanguageModel, tokenizer: BPETokenizer, n: int, seed: int, watch: Watch = silent
) -> list[str | None]:
    """Draw n texts from the model itself: temperature 1, top-p 1, no prompt. One that never ends is None."""
    start = tokenizer.special_tokens[END_OF_TEXT]
    texts: list[str | None] = []
    for first in watch(range(0, n, BATCH), "telling stories"):
        prompts = [[start]] * min(BATCH, n - first)
        rows = generate(model, prompts, model.config.context - 1, stop_tokens=[start], seed=seed + first)  # (B, 1 + n)
        texts += [text_before(tokenizer, row[1:], start) for row in rows.tolist()]
    return texts


def text_before(tokenizer: BPETokenizer, ids: list[int], stop: int) -> str | None:
    """The text up to the stop token, or None where there is no such token or another special one comes first."""
    if stop not in ids:
        return None
    body = ids[: ids.index(stop)]
    if any(token in body for token in tokenizer.special_tokens.values()):
        return None
    return tokenizer.decode(body)


def story_figures(
    model: LanguageModel, tokenizer: BPETokenizer, corpus: Corpus, n: int, seed: int, watch: Watch = silent
) -> Figures:
    """The share of sampled texts that the judge accepts, and of those the share that is distinct, and that is novel."""
    if corpus.world is None:
        return {"story_rate": None, "stories": None, "distinct": None, "novel": None}
    world = corpus.world
    texts = sample_texts(model, tokenizer, n, seed, watch)
    accepted = [text for text in texts if text is not None and world.accepts(text)]
    known = set(corpus.train)
    return {
        "story_rate": len(accepted) / n,
        "stories": n,
        "distinct": len(set(accepted)) / len(accepted) if accepted else None,
        "novel": sum(text not in known for text in accepted) / len(accepted) if accepted else None,
    }


def instruction_figures(
    model: LanguageModel, tokenizer: BPETokenizer, corpus: Corpus, n: int, seed: int, watch: Watch = silent
) -> Figures:
    """What the answers to the questions of `n` unseen conversations tell, each asked once; n is at least 1.

    instruction_accuracy is the share of right answers, of `instructions`; the true share lies between its _low and its
    _high with 95 % confidence (Wilson). later_turns are questions with turns (and their known answers) before them.
    accuracy_KIND and count_KIND are the share and the number of each kind that was asked. For the others see
    `world_figures`. ANSWER_FIGURES are None where the corpus gives nothing to ask about, those of the world where it
    has none.
    """
    figures: Figures = dict.fromkeys(ANSWER_FIGURES)
    examiner = examiner_of(corpus)
    if examiner is None:
        return figures
    asked = questions_of(examiner.conversations(n, seed, "test"))
    answers = answer_all(model, tokenizer, asked, watch)
    marks = [
        Mark(turn, len(history), answer, examiner.is_right(turn, answer))
        for (history, turn), answer in zip(asked, answers, strict=True)
    ]
    figures |= accuracy_figures(marks)
    if corpus.world is not None:
        figures |= world_figures(marks)
    return figures | kind_figures(marks)


@dataclass(frozen=True)
class Mark:
    """A question that was asked, after so many turns of its conversation; a model's answer, and whether it is right."""

    turn: Turn
    turns_before: int
    answer: str
    right: bool


def accuracy_figures(marks: Sequence[Mark]) -> Figures:
    """The share of right answers, of how many, and between which shares the true one lies; the same of later turns."""
    right = sum(mark.right for mark in marks)
    accuracy, (low, high) = right / len(marks), wilson_interval(right, len(marks))
    later = [mark.right for mark in marks if mark.turns_before]
    return {
        "instruction_accuracy": accuracy,
        "instructions": len(marks),
        "instruction_accuracy_low": min(low, accuracy),  # at 0 and 1 they differ by a rounding
        "instruction_accuracy_high": max(high, accuracy),
        "later_turns": len(later),
        "later_turns_accuracy": share(later),
    }


def world_figures(marks: Sequence[Mark]) -> Figures:
    """How a model keeps to its world.

    story_requests_obeyed: of the stories asked for, the share that the judge accepts and that hold all that was wished.
    beyond_world_refused: of the questions that the world cannot answer, the share that got the honest answer.
    within_world_refused: of all others, which have an answer in the world, the share that got that refusal; None where
    none of the former was asked, for their known answer says what a refusal is.
    """
    refusals = {mark.turn.assistant for mark in marks if mark.turn.kind == BEYOND}
    stories = [mark.right for mark in marks if mark.turn.kind == STORY]
    beyond = [mark.answer in refusals for mark in marks if mark.turn.kind == BEYOND]
    within = [mark.answer in refusals for mark in marks if mark.turn.kind != BEYOND]
    return {
        "story_requests": len(stories),
        "story_requests_obeyed": share(stories),
        "beyond_world": len(beyond),
        "beyond_world_refused": share(beyond),
        "within_world": len(within),
        "within_world_refused": share(within) if refusals else None,
    }


def kind_figures(marks: Sequence[Mark]) -> Figures:
    """By kind of question: the share of right answers, and how many were asked."""
    figures: Figures = {}
    for kind in sorted({mark.turn.kind for mark in marks}):
        right = [mark.right for mark in marks if mark.turn.kind == kind]
        figures |= {f"accuracy_{kind}": share(right), f"count_{kind}": len(right)}
    return figures


def share(marks: Sequence[bool]) -> float | None:
    """Which part of them is true, from 0 to 1; None of nothing."""
    return sum(marks) / len(marks) if marks else None


Question = tuple[Conversation, Turn]  # what was said before, and the turn to answer


def questions_of(conversations: Sequence[Conversation]) -> list[Question]:
    """Every turn of every conversation once, with the turns before it (and their known answers) as its history."""
    return [(conversation[:place], turn) for conversation in conversations for place, turn in enumerate(conversation)]


def answer_all(
    model: LanguageModel, tokenizer: BPETokenizer, asked: Sequence[Question], watch: Watch = silent
) -> list[str]:
    """Answer each question as the chat would, many side by side. A question that leaves no room gets ""."""
    end = tokenizer.special_tokens[END]
    prompts = [render_prompt(tokenizer, history, turn.user) for history, turn in asked]
    answers = [""] * len(asked)
    fitting = [i for i in range(len(asked)) if len(prompts[i]) < model.config.context]
    fitting.sort(key=lambda i: len(prompts[i]))  # alike in a batch: less padding
    for first in watch(range(0, len(fitting), BATCH), "answering"):
        batch = fitting[first : first + BATCH]
        shortest, longest = len(prompts[batch[0]]), len(prompts[batch[-1]])
        room = model.config.context - shortest  # so that no answer is cut because a neighbour's question is longer
        drawing = {"temperature": TEMPERATURE, "top_p": TOP_P, "stop_tokens": [end], "seed": first}
        rows = generate(model, [prompts[i] for i in batch], room, **drawing)  # (B, longest + n)
        for i, row in zip(batch, rows.tolist(), strict=True):
            answers[i] = text_before(tokenizer, row[longest:], end) or ""
    return answers


def wilson_interval(right: int, n: int, z: float = 1.96) -> tuple[float, float]:
    """Between which shares the true one lies, with 95 % confidence, when `right` of `n` were right.

    Source: Wilson (1927), "Probable inference, the law of succession, and statistical inference".
    """
    if n == 0:
        return 0.0, 1.0
    share, spread = right / n, z * z / n
    middle = (share + spread / 2) / (1 + spread)
    half = z / (1 + spread) * math.sqrt(share * (1 - share) / n + spread / (4 * n))
    return max(0.0, middle - half), min(1.0, middle + half)
