"""How good a trained model is: its loss beside the floor, its stories before the judge, its answers to known questions.

Every figure is computed in float32 and depends on (model, settings) alone.
"""

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from shared.app.chat import TEMPERATURE, TOP_P
from shared.corpora import Conversation, Corpus, Turn, Watch, World, load_corpus, silent
from shared.errors import CourseError
from shared.model.generate import generate
from shared.model.gpt import LanguageModel
from shared.text.bpe import BPETokenizer
from shared.text.template import END, END_OF_TEXT, render_prompt, render_story
from shared.training.checkpoint import load_model
from shared.training.device import best_device
from shared.training.evaluate import bits_per_byte, document_nats, entropy_floor

BATCH = 64  # texts that are generated side by side


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
) -> dict[str, float | int | None]:
    """Measure the model in a directory on the corpus it was trained on, or on another; return one flat dict.

    stories: how many to generate for the judge; questions: how many test conversations; texts: how many validation
    documents at most. Losses and floors are in nats per token. A figure that the corpus does not allow is None:
    story figures without a world, entropy_floor for text whose source is unknown.
    """
    model, tokenizer, info = open_model(directory)
    corpus = corpus or corpus_of(info, watch)
    figures: dict[str, float | int | None] = loss_figures(model, tokenizer, corpus, texts, watch)
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
) -> dict[str, float | int | None]:
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
) -> dict[str, float | int | None]:
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
) -> dict[str, float | int | None]:
    """The share of unseen questions that get a right answer, over all and by kind of question."""
    if corpus.world is None:
        return {"instruction_accuracy": None, "instructions": None}
    world = corpus.world
    asked = questions_of(world.conversations(n, seed, "test"))
    answers = answer_all(model, tokenizer, asked, watch)
    totals = Counter(turn.kind for _, turn in asked)
    right = Counter(turn.kind for (_, turn), answer in zip(asked, answers, strict=True) if world.is_right(turn, answer))
    return {
        "instruction_accuracy": sum(right.values()) / len(asked),
        "instructions": len(asked),
        **{f"accuracy_{kind}": right[kind] / totals[kind] for kind in sorted(totals)},
    }


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
