"""What every source of text hands over: documents to train on, documents to judge by and, in one case, a world."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Protocol


class Watch(Protocol):
    """Something that wraps a loop, as a progress bar does."""

    def __call__(self, loop: Iterable[Any], name: str, total: int | None = None) -> Iterable[Any]: ...


def silent(loop: Iterable[Any], name: str, total: int | None = None) -> Iterable[Any]:
    """No progress bar."""
    return loop


@dataclass(frozen=True)
class Turn:
    """One question and its known answer. `kind` groups questions in reports: story, who, where, ..."""

    kind: str
    user: str
    assistant: str


Conversation = tuple[Turn, ...]


def after_reading(text: str, turns: list[Turn]) -> Conversation:
    """The turns, with the text to read before the first question; () where there are none."""
    if not turns:
        return ()
    first, *others = turns
    return (Turn(first.kind, f"{text}\n{first.user}", first.assistant), *others)


class Examiner(Protocol):
    """Who asks questions about a corpus, and knows the answers. Splits: train, and test with unseen texts."""

    def conversations(self, n: int, seed: int, split: str = "train") -> list[Conversation]: ...

    def is_right(self, turn: Turn, answer: str) -> bool: ...


class World(Examiner, Protocol):
    """What a corpus can offer when we wrote its grammar ourselves: exact probabilities, a judge and known answers."""

    def stories(self, n: int, seed: int, split: str = "train") -> list[str]: ...

    def log_probability(self, text: str, split: str = "train") -> float: ...

    def accepts(self, text: str) -> bool: ...

    def explain(self, text: str) -> str: ...

    def reading_lessons(self, n: int, seed: int, split: str = "train") -> list[Conversation]: ...


@dataclass(frozen=True)
class Corpus:
    """Texts by split. `train` and `val` share a distribution; `heldout` holds what training never shows."""

    name: str
    source: str  # where the text came from, for people
    train: list[str]
    val: list[str]
    heldout: list[str] = field(default_factory=list)
    world: World | None = None  # only the stories have one

    @property
    def train_bytes(self) -> int:
        return sum(len(text.encode("utf-8")) for text in self.train)


TOKENIZER_TEXT = 2_000_000  # characters to learn a vocabulary from: more would change it little


def excerpt(texts: list[str], characters: int) -> list[str]:
    """About so many characters: texts from all over the list, or the beginnings of a few long ones."""
    chosen = texts[:: max(1, sum(map(len, texts)) // characters)]
    return chosen if len(chosen) >= 10 else [text[: characters // len(texts)] for text in texts]


def every_nth(documents: list[str], n: int) -> tuple[list[str], list[str]]:
    """Split whole documents into (train, val): each n-th one, counted in the order given, is for validation."""
    val = documents[n - 1 :: n]
    train = [text for index, text in enumerate(documents) if index % n != n - 1]
    return train, val
