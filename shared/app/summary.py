"""What the main job prints at its end: samples or five answers, how good they are, and where the models lie."""

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from shared.app.chat import Chat
from shared.app.progress import Say, watch
from shared.app.report import instruction_figures, loss_figures, open_model, story_figures, wilson_interval
from shared.corpora import Conversation, Corpus, Turn
from shared.corpora.instructions import examiner_of
from shared.model.generate import generate
from shared.model.gpt import LanguageModel
from shared.text.bpe import BPETokenizer
from shared.text.template import END_OF_TEXT
from shared.training.evaluate import gzip_bits_per_byte

FIVE_KINDS = ("greeting", "identity", "story", "colour", "unknown")


def summarize_stories(pretrained: Path, chat: Path, corpus: Corpus, seed: int, say: Say) -> dict[str, Any]:
    """Measure both models, ask the five questions, and print what came out."""
    model, tokenizer, _ = open_model(pretrained)
    figures: dict[str, Any] = loss_figures(model, tokenizer, corpus, 500, watch)
    figures |= story_figures(model, tokenizer, corpus, 200, seed, watch)
    model, tokenizer, _ = open_model(chat)
    figures |= instruction_figures(model, tokenizer, corpus, 200, seed, watch)
    say("\nFive questions:")
    figures["answers"] = ask_five(Chat(model, tokenizer, seed=seed), corpus, say)
    say("\nHow good is it?")
    for line in story_lines(figures):
        say(f"  {line}")
    say("\nWhere are the models?")
    say(f"  {pretrained}   pretrained on stories")
    say(f"  {chat}   tuned on instructions; talk to it with: {chat_command(chat)}")
    return figures


def ask_five(chat: Chat, corpus: Corpus, say: Say) -> list[dict[str, Any]]:
    """Ask one question of each of five kinds, each in a conversation of its own."""
    examiner = examiner_of(corpus)
    assert examiner is not None
    answers = []
    for number, turn in enumerate(choose_five(examiner.conversations(500, chat.seed, "test")), 1):
        chat.reset()
        answer = "".join(chat.answer(turn.user))
        right = examiner.is_right(turn, answer)
        say(f"\n  {number}. you    {indented(turn.user)}\n     model  {indented(answer)}")
        answers.append({"kind": turn.kind, "question": turn.user, "answer": answer, "right": right})
    return answers


def choose_five(conversations: Sequence[Conversation]) -> list[Turn]:
    """The first opening question of each of the five kinds; where a world lacks a kind, of any other."""
    first: dict[str, Turn] = {}
    for conversation in conversations:
        first.setdefault(conversation[0].kind, conversation[0])
    kinds = [kind for kind in FIVE_KINDS if kind in first] + [kind for kind in first if kind not in FIVE_KINDS]
    return [first[kind] for kind in kinds[:5]]


def summarize_text(pretrained: Path, chat: Path | None, corpus: Corpus, seed: int, say: Say) -> dict[str, Any]:
    """Measure a model of real text, print what it writes and, where it was tuned (`chat`), what it answers."""
    model, tokenizer, _ = open_model(pretrained)
    figures: dict[str, Any] = loss_figures(model, tokenizer, corpus, 500, watch)
    figures["gzip_bits_per_byte"] = gzip_bits_per_byte("".join(corpus.val))
    figures["samples"] = [begin_text(model, tokenizer, seed + n, tokens=100) for n in range(3)]
    say("\nThree samples:")
    for number, sample in enumerate(figures["samples"], 1):
        say(f"\n  {number}. {indented(sample)}")
    lines = [
        f"loss on unseen text     {figures['val_loss']:.4f} nats a token, {figures['bits_per_byte']:.3f} bits a byte; "
        f"gzip needs {figures['gzip_bits_per_byte']:.3f}"
    ]
    if chat is not None:
        model, tokenizer, _ = open_model(chat)
        figures |= instruction_figures(model, tokenizer, corpus, 200, seed, watch)
        say("\nFive questions:")
        figures["answers"] = ask_five(Chat(model, tokenizer, seed=seed), corpus, say)
        lines += answer_lines(figures)
    say("\nHow good is it?")
    for line in lines:
        say(f"  {line}")
    say("\nWhere are the models?" if chat else "\nWhere is the model?")
    say(f"  {pretrained}   pretrained on {corpus.name}; it continues text:")
    say(f"  python -m shared sample --model {pretrained} --prompt TEXT --tokens 100")
    if chat is None:
        say("  There was no tuning: this text gives nothing to ask about that would fit the model's context.")
    else:
        say(f"  {chat}   tuned on questions about the text; talk to it with: {chat_command(chat)}")
    return figures


def story_lines(figures: dict[str, Any]) -> list[str]:
    """The figures of a story model in words."""
    over = figures["val_loss"] / figures["entropy_floor"] - 1
    low, high = wilson_interval(round(figures["story_rate"] * figures["stories"]), figures["stories"])
    lines = [
        f"loss on unseen stories  {figures['val_loss']:.4f} nats a token; the entropy floor is "
        f"{figures['entropy_floor']:.4f}: {over:.1%} above the least possible",
        f"stories of its own      {figures['story_rate']:.1%} of {figures['stories']} accepted by the judge "
        f"(95 % interval {low:.1%} to {high:.1%})",
    ]
    if figures["distinct"] is not None:
        lines.append(f"                        of these {figures['distinct']:.1%} distinct, {figures['novel']:.1%} new")
    return lines + answer_lines(figures)


def answer_lines(figures: dict[str, Any]) -> list[str]:
    """How many answers were right, in words."""
    kinds = [key for key in figures if key.startswith("accuracy_")]
    return [
        f"answers                 {figures['instruction_accuracy']:.1%} of {figures['instructions']} right, by kind:",
        " " * 24 + ", ".join(f"{key.removeprefix('accuracy_')} {figures[key]:.0%}" for key in kinds),
    ]


def indented(text: str) -> str:
    """A text wrapped for the terminal, its further lines under the first."""
    lines = [piece for line in text.split("\n") for piece in (textwrap.wrap(line, 96) or [""])]
    return "\n            ".join(lines)


def chat_command(directory: Path) -> str:
    return "make chat" if directory == Path("models/chat") else f"python -m shared chat --model {directory}"


def begin_text(model: LanguageModel, tokenizer: BPETokenizer, seed: int, tokens: int) -> str:
    """The beginning of a text that the model writes by itself."""
    start = tokenizer.special_tokens[END_OF_TEXT]
    row = generate(model, [[start]], tokens, temperature=0.8, stop_tokens=[start], seed=seed)[0].tolist()
    return tokenizer.decode([token for token in row if token != start])


def on_one_line(text: str) -> str:
    return " ".join(text.split())
