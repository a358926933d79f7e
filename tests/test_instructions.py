"""Questions by rule: every one follows from the text and has its answer there, and the judge knows right from wrong."""

import re

import pytest

from shared.corpora import load_corpus
from shared.corpora.base import Corpus, Turn
from shared.corpora.instructions import (
    LEAST,
    MOST,
    OPEN_KINDS,
    SMALL_TALK,
    Function,
    RuleBook,
    examiner_of,
    followers,
    functions,
    passages,
    pieces,
)

CODE = '''"""A module."""


def area(width, height=1, *more, unit, **rest):
    """Multiply two lengths.

    A second paragraph.
    """
    product = width * height  # the area itself
    return product


class Shape:
    def name(self):
        """Say what it is."""

    def sides(self):
        return self.corners + self.extra_corners + self.even_more_corners + self.those_nobody_counts
'''
PROSE = "\n\n".join(
    f"The {colour} boat came home before the storm, and the {colour} sail was wet. Nobody on the pier had seen number "
    f"{number} leave in the morning, and the harbour master wrote {number} in the book."
    for number, colour in enumerate(["red", "green", "yellow", "white", "black", "brown", "orange", "purple"])
)


@pytest.fixture(scope="module")
def docs():
    return RuleBook.of(load_corpus("python-docs"))


def turns_of(conversations):
    return [turn for conversation in conversations for turn in conversation]


def test_functions_of_a_module_by_hand():
    area, name, sides = functions(CODE)
    assert (area.signature, area.purpose) == ("area(width, height, more, unit, rest)", "Multiply two lengths.")
    assert area.undocumented.split("\n") == [
        "def area(width, height=1, *more, unit, **rest):",
        "    product = width * height  # the area itself",
        "    return product",
    ]
    assert area.source in CODE and '"""Multiply two lengths.' in area.source
    assert (name.signature, name.undocumented) == ("name(self)", name.source)  # nothing would be left of it
    assert sides.source.startswith("def sides(self):\n    return ") and sides.purpose == ""
    assert [piece.name for piece in pieces(CODE)] == ["area", "sides"]  # the other one is too short to ask about
    assert functions("no code, but prose.") is None and functions("x = 1") is None


def test_passages_are_parts_of_the_text_of_a_handy_length():
    long = "One short sentence stands here. " * 40
    text = f"{PROSE}\n\nToo short.\n\n{long}\n\n{'x' * 2 * MOST}"
    found = list(passages(text))
    assert all(LEAST <= len(passage) <= MOST and passage in text for passage in found)
    assert len(found) == 8 + 3 or len(found) == 8 + 4
    assert all(passage.endswith(".") for passage in found) and not any("Too short" in passage for passage in found)
    cut = "".join(passage.replace(" ", "") for passage in found[8:])
    assert cut == long.replace(" ", "")[: len(cut)] and len(long) - len(" ".join(found[8:])) <= LEAST


def test_what_follows_two_words_is_asked_where_it_is_certain():
    asked = {turn.user: turn.assistant for turn in followers("one two three, one two four five six")}
    assert asked == {
        'Which word comes right after "two four"?': "five",
        'Which word comes right after "four five"?': "six",
    }


@pytest.mark.parametrize("split", ["train", "test"])
def test_every_known_answer_is_right_and_stands_in_its_own_split(docs, split):
    corpus = load_corpus("python-docs")
    texts = "\0".join(corpus.train if split == "train" else corpus.val)
    turns = turns_of(docs.conversations(400, seed=3, split=split))
    assert all(docs.is_right(turn, turn.assistant) for turn in turns)
    for turn in turns:
        if turn.kind in ("words", "go_on"):
            assert turn.assistant in texts
    kinds = {turn.kind for turn in turns}
    assert kinds == {"after", "missing", "words", *SMALL_TALK} | (OPEN_KINDS & {"go_on"} if split == "train" else set())


def test_the_answer_to_a_question_about_a_passage_can_be_read_in_it(docs):
    for first, *others in docs.conversations(300, seed=4):
        passage = first.user.rpartition("\n")[0]
        if first.kind == "after":
            words = re.findall(r"\w+(?:['’]\w+)?", passage)
            triples = list(zip(words, words[1:], words[2:], strict=False))
            for turn in (first, *others):
                one, two = re.search(r'after "(.+)"\?$', turn.user).group(1).split()
                assert {c for a, b, c in triples if (a, b) == (one, two)} == {turn.assistant}
        if first.kind == "missing":
            assert passage.count("___") == 1 and re.search(rf"\b{first.assistant}\b", passage)
        if first.kind == "go_on":
            assert first.user.startswith("How does this go on?\n")


def test_the_same_seed_asks_the_same_and_another_one_does_not(docs):
    assert docs.conversations(50, seed=1) == docs.conversations(50, seed=1)
    assert docs.conversations(50, seed=1) != docs.conversations(50, seed=2)
    assert docs.conversations(50, seed=1, split="test") != docs.conversations(50, seed=1)


def test_the_judge_of_code():
    book = RuleBook("code", [CODE], [CODE])
    turns = turns_of(book.conversations(200, seed=0))
    assert {"name", "arguments", "purpose", "write"} <= {turn.kind for turn in turns}
    write = next(turn for turn in turns if turn.kind == "write")
    assert write.user == "Write a Python function area(width, height, more, unit, rest): Multiply two lengths."
    right = "def area(width, height, *more, unit, **rest):\n    return 7"
    assert book.is_right(write, right) and book.is_right(write, write.assistant)
    for wrong in ("", "area", right.replace("area", "size"), right.replace("unit", "units"), right.replace("7", "(")):
        assert not book.is_right(write, wrong)
    name = next(turn for turn in turns if turn.kind == "name" and "area" in turn.assistant)
    assert book.is_right(name, "area") and not book.is_right(name, "area ") and not book.is_right(name, "sides")
    purposes = [turn for turn in turns if turn.kind == "purpose"]
    assert {turn.assistant for turn in purposes} == {"Multiply two lengths."}
    for conversation in book.conversations(200, seed=0):
        read = "\n".join(turn.user for turn in conversation)
        assert all(turn.assistant not in read for turn in conversation if turn.kind == "purpose")


def test_asked_words_have_to_be_there_as_words():
    turn = Turn("words", "Write a text with the words boat, pier and storm", "...")
    book = RuleBook("prose", [PROSE], [PROSE])
    assert book.is_right(turn, "A boat, a storm: and then the pier.")
    assert not book.is_right(turn, "A boat, a storm.") and not book.is_right(turn, "A boatyard, a pier, a storm.")


def test_open_questions_and_learnt_wordings_are_never_examined(docs):
    examined, learnt = (turns_of(docs.conversations(600, seed=5, split=split)) for split in ("test", "train"))
    assert not OPEN_KINDS & {turn.kind for turn in examined}
    talk = [{turn.user for turn in turns if turn.kind in SMALL_TALK} for turns in (examined, learnt)]
    assert talk[0] and talk[1] and not talk[0] & talk[1]


def test_a_world_asks_its_own_questions_and_a_text_without_words_none():
    stories = load_corpus("stories", stories=50)
    assert examiner_of(stories) is stories.world
    assert examiner_of(Corpus("x", "x", ["x" * 2000], ["x" * 200])) is None
    assert examiner_of(Corpus("x", "x", [PROSE], ["too short"])) is None
    assert isinstance(examiner_of(Corpus("x", "x", [PROSE], [PROSE])), RuleBook)


def test_code_of_this_python_gives_functions_that_compile():
    book = RuleBook.of(load_corpus("python-code"))
    material = [piece for piece in book.material("test") if isinstance(piece, Function)]
    assert len(material) > 100
    for function in material:
        compile(function.source, "source", "exec", dont_inherit=True)
        compile(function.undocumented, "undocumented", "exec", dont_inherit=True)
