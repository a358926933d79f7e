"""Questions by rule about any text, with known answers: so that a model of real text learns to answer, too.

    book = RuleBook.of(corpus)
    book.conversations(100, seed=1)     questions about passages and functions of the training text
    book.is_right(turn, answer)         the judge

Nobody wrote these questions: each follows from the text by a rule, and so does its answer.

    prose   after      the word that follows two others in a passage
            missing    the word at a gap, which the passage uses once more
            words      a passage that holds three given words
            go_on      the second half of a passage
    code    name       of a function that was read
            arguments  of a function that was read
            purpose    the first line of its docstring, which was taken out
            write      a function of a given name, with given arguments, for a given purpose

Of `go_on` and `purpose` many answers are good, so they are learnt and never examined.
"""

from __future__ import annotations

import ast
import random
import re
import textwrap
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

from shared.corpora.base import Conversation, Corpus, Examiner, Turn, after_reading, excerpt

LEAST, MOST = 80, 400  # characters of a passage or function: with its questions it has to fit a small context
READ = 20_000_000  # characters of the training text that questions are about: more would only take time
OPEN_KINDS = {"go_on", "purpose"}
SMALL_TALK = {  # kind -> wordings that are learnt, wordings that are examined
    "greeting": (("Hello", "Hi", "Good day", "Hello there"), ("Good morning", "Hi there")),
    "identity": (("Who are you?", "What are you?", "What can you do?"), ("Who am I talking to?", "What do you know?")),
}
TALK_SHARE = 0.05
WORD = re.compile(r"\w+(?:['’]\w+)?")


@dataclass(frozen=True)
class Function:
    """A function of the text: its arguments by name, the first line of its docstring, its source with and without."""

    name: str
    arguments: str
    purpose: str
    source: str
    undocumented: str

    @property
    def signature(self) -> str:
        """As a question names it: f(x, y)."""
        return f"{self.name}({self.arguments})"


class RuleBook:
    """Questions about the passages and functions of two lists of texts: one to learn from, one to be examined on."""

    def __init__(self, name: str, train: list[str], val: list[str]):
        self.name = name
        self._texts = {"train": train, "test": val}
        self._found: dict[str, list[str | Function]] = {}

    @classmethod
    def of(cls, corpus: Corpus) -> RuleBook:
        """The questions about a corpus; those to learn are about READ characters of it at the most."""
        return cls(corpus.name, excerpt(corpus.train, READ), corpus.val)

    def material(self, split: str) -> list[str | Function]:
        """What can be asked about: the functions of texts that are Python, the passages of all others."""
        if split not in self._found:
            self._found[split] = [piece for text in self._texts[split] for piece in pieces(text)]
        return self._found[split]

    def has_questions(self) -> bool:
        """Whether there is anything to ask about in both splits; it reads no further than needed to know."""
        return all(
            any(can_be_asked(piece) for text in texts for piece in pieces(text)) for texts in self._texts.values()
        )

    def conversations(self, n: int, seed: int, split: str = "train") -> list[Conversation]:
        """`n` conversations of one to three turns, the same for the same seed. Splits: train, and test."""
        rng, material = random.Random(f"instructions {split} {seed}"), self.material(split)
        return [self._conversation(rng, material, split == "test") for _ in range(n)]

    def _conversation(self, rng: random.Random, material: list[str | Function], examined: bool) -> Conversation:
        if rng.random() < TALK_SHARE:
            kind = rng.choice(list(SMALL_TALK))
            return (Turn(kind, rng.choice(SMALL_TALK[kind][examined]), self.introduction),)
        while True:  # of a few passages nothing can be asked
            piece = rng.choice(material)
            if isinstance(piece, Function):
                return about_function(piece, rng, examined)
            if conversation := about_passage(piece, rng, examined):
                return conversation

    @cached_property
    def introduction(self) -> str:
        """What the model says of itself."""
        return f"I am a small language model that has read {self.name}. Show me a part of it, and ask me about it."

    def is_right(self, turn: Turn, answer: str) -> bool:
        """Is this an answer to the question? A text needs the words that were asked for, a function has to be Python
        with the name and the arguments that were; every other answer is exact."""
        if turn.kind == "words":
            return set(WORD.findall(turn.user.rpartition("words ")[2])) - {"and"} <= set(WORD.findall(answer))
        if turn.kind == "write":
            wanted, written = functions(turn.assistant) or [], functions(answer) or []
            return [function.signature for function in written[:1]] == [wanted[0].signature]
        return answer == turn.assistant


def examiner_of(corpus: Corpus) -> Examiner | None:
    """Who asks questions about a corpus: its world, or the rules; None where a text gives nothing to ask about."""
    if corpus.world is not None:
        return corpus.world
    book = RuleBook.of(corpus)
    return book if book.has_questions() else None


# --------------------------------------------------------------------------------------------------- taking texts apart


def pieces(text: str) -> Iterator[str | Function]:
    """The functions of a text that is Python, or else its passages."""
    found = functions(text)
    yield from passages(text) if found is None else (function for function in found if is_handy(function.source))


def is_handy(piece: str) -> bool:
    """Whether it is short enough to be read with a question, and long enough to be worth one."""
    return LEAST <= len(piece) <= MOST


def passages(text: str) -> Iterator[str]:
    """Paragraphs of LEAST to MOST characters; longer ones are cut between sentences."""
    for paragraph in re.split(r"\n\s*\n", text):
        part = ""
        for sentence in re.split(r"(?<=[.!?])(?=\s)", paragraph):
            if len(part) + len(sentence) > MOST:
                if is_handy(part.strip()):
                    yield part.strip()
                part = ""
            part += sentence
        if is_handy(part.strip()):
            yield part.strip()


def functions(text: str) -> list[Function] | None:
    """The functions of a Python text; None where the text is not Python or has no function."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # old code with odd escapes
            tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    lines = text.split("\n")
    return [described(node, lines) for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)] or None


def described(node: ast.FunctionDef, lines: list[str]) -> Function:
    """What the questions need to know of a function."""
    source, every = cut_out(lines, node.lineno, node.end_lineno or node.lineno), node.args
    named = [*every.posonlyargs, *every.args, every.vararg, *every.kwonlyargs, every.kwarg]
    arguments = ", ".join(argument.arg for argument in named if argument is not None)
    documentation, bare = ast.get_docstring(node), source
    if documentation is not None and len(node.body) > 1:
        first = node.body[0]
        end = node.end_lineno or node.lineno
        bare = cut_out(lines, node.lineno, end, without=range(first.lineno, (first.end_lineno or first.lineno) + 1))
    purpose = (documentation or "").strip().split("\n")[0]
    return Function(node.name, arguments, purpose, source, bare)


def cut_out(lines: list[str], first: int, last: int, without: Iterable[int] = ()) -> str:
    """Lines `first` to `last`, counted from 1, moved to the left margin; a few may be left out."""
    dropped = set(without)
    kept = [lines[number - 1] for number in range(first, last + 1) if number not in dropped]
    return textwrap.dedent("\n".join(kept)).strip("\n")


# ------------------------------------------------------------------------------------------------- asking about a piece


def about_function(function: Function, rng: random.Random, examined: bool) -> Conversation:
    """Either a function to be written, or questions about one that was read."""
    if function.purpose and rng.random() < 0.4:
        wish = f"Write a Python function {function.signature}: {function.purpose}"
        return (Turn("write", wish, function.source),)
    turns = [
        Turn("name", "What is the name of this function?", function.name),
        Turn("arguments", "Which arguments does this function take?", function.arguments or "none"),
    ]
    if function.purpose and function.undocumented != function.source and not examined:
        turns.append(Turn("purpose", "What does this function do?", function.purpose))
    return after_reading(function.undocumented, rng.sample(turns, rng.randint(1, len(turns))))


def about_passage(passage: str, rng: random.Random, examined: bool) -> Conversation:
    """One kind of question about a passage; () where it gives none of that kind."""
    kind = rng.choice(["after", "missing", "words"] if examined else ["after", "missing", "words", "go_on"])
    if kind == "after":
        asked = followers(passage)
        return after_reading(passage, rng.sample(asked, min(2, len(asked))))
    if kind == "missing":
        return missing_word(passage, rng)
    if kind == "words":
        long = sorted({word for word in WORD.findall(passage) if len(word) > 3 and word.isalpha()})
        if len(long) < 3:
            return ()
        first, second, third = rng.sample(long, 3)
        return (Turn("words", f"Write a text with the words {first}, {second} and {third}", passage),)
    middle = passage.find(" ", len(passage) // 2)
    if middle < 0:
        return ()
    return (Turn("go_on", f"How does this go on?\n{passage[:middle]}", passage[middle:].strip()),)


def followers(passage: str) -> list[Turn]:
    """A question for every three words in a row whose first two stand there only once."""
    words = list(WORD.finditer(passage))
    together = [passage[a.end() : b.start()].isspace() for a, b in pairwise(words)]
    texts = [word.group() for word in words]
    pairs = Counter(pairwise(texts))
    return [
        Turn("after", f'Which word comes right after "{texts[i]} {texts[i + 1]}"?', texts[i + 2])
        for i in range(len(words) - 2)
        if together[i] and together[i + 1] and pairs[texts[i], texts[i + 1]] == 1
    ]


def missing_word(passage: str, rng: random.Random) -> Conversation:
    """A gap in the place of a word that stands elsewhere in the passage; () where no long word stands there twice."""
    counts = Counter(WORD.findall(passage))
    repeated = [word for word in WORD.finditer(passage) if counts[word.group()] > 1 and len(word.group()) > 3]
    if not repeated:
        return ()
    gap = rng.choice(repeated)
    text = f"{passage[: gap.start()]}___{passage[gap.end() :]}"
    return (Turn("missing", f"{text}\nWhich word is missing at ___?", gap.group()),)


def can_be_asked(piece: str | Function) -> bool:
    """Whether a question can be examined about it."""
    return isinstance(piece, Function) or bool(followers(piece))
