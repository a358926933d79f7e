"""Questions with known answers about the story world: about a given story, about things, and small talk."""

from __future__ import annotations

import random
import re
from functools import cache
from typing import TYPE_CHECKING

from shared.corpora.base import Conversation, Turn
from shared.corpora.grammar import Node, parse_template, write

if TYPE_CHECKING:
    from shared.corpora.stories import Story, World

# How often each kind of conversation occurs: reading a story and answering, telling one, and the rest.
MIXTURE = {"reading": 18, "story": 50, "use": 5, "greeting": 7, "thanks": 4, "goodbye": 4, "identity": 5, "unknown": 7}

WISHES = (  # what a story may be asked to hold
    "{hero.a} and {thing.a}",
    "{friend.a} and {thing.a}",
    "{hero} and {place}",
    "{hero.a} and {friend.a}",
    "{friend} and {colour.a} {thing}",
    "{colour.a} {thing} and {place}",
    "{hero} and {friend}",
    "{hero.a}",
    "{thing.a}",
)

USE_QUESTIONS = ("What is {thing.a} for?", "What can you do with {thing.a}?", "What is {thing.a} good for?")

# (kind, wordings, answer). {helper} and {helped} are the hero and the friend in the order that the plot says.
ABOUT_A_STORY = (
    ("who", ("Who brought the {thing}?", "Who came with the {thing}?"), "{hero} the {hero.kind}."),
    ("who", ("Who helped {helped}?", "Who was it that helped {helped}?"), "{helper} the {helper.kind}."),
    ("who", ("Who met {hero}?", "Whom did {hero} meet?", "Who was there with {hero}?"), "{friend} the {friend.kind}."),
    ("who", ("Who was {mood}?", "Who felt {mood}?"), "{friend} the {friend.kind}."),
    ("use", USE_QUESTIONS, "{thing.purpose}."),
    ("what", ("What did {hero} have?", "What did {hero} bring along?"), "{colour.A} {thing}."),
    ("what", ("What was {friend}?", "What kind of creature was {friend}?"), "{friend} was {friend.a}."),
    ("what", ("What was {hero}?", "What kind of creature was {hero}?"), "{hero} was {hero.a}."),
    ("where", ("Where did {hero} go?", "Where did {hero} take the {thing}?"), "To {place}."),
    ("where", ("Where did {hero} meet {friend}?", "Where was {friend}?", "Where did they meet?"), "{place.At}."),
    ("feeling", ("How did {friend} feel?", "How was {friend}?", "In what mood was {friend}?"), "{friend} was {mood}."),
    (
        "colour",
        ("What colour was the {thing}?", "Which colour was the {thing}?", "What was the colour of the {thing}?"),
        "It was {colour}.",
    ),
)


def questions_about(story: Story, rng: random.Random) -> list[Turn]:
    """Every question about a story once, each in one of its wordings."""
    helped = "friend" if story.plot.helper == "hero" else "hero"
    facts = {**story.bindings, "helper": story.bindings[story.plot.helper], "helped": story.bindings[helped]}

    def fill(node: Node) -> str:
        return write(node, facts, {}, rng.random)[0]

    turns = [Turn(kind, fill(_template(rng.choice(wordings))), fill(_template(answer)))
             for kind, wordings, answer in ABOUT_A_STORY]  # fmt: skip
    turns += [Turn("what", fill(question), fill(answer)) for question, answer in story.plot.asks]
    return turns


LONG_LESSON, SHORT_LESSON = 6, 5  # questions, at the most


def reading_lessons(world: World, n: int, seed: int, split: str) -> list[Conversation]:
    """`n` stories with questions about them, one in eight whole and the others only begun.

    A fact is found in two sentences long before it is found in twenty: most texts are short, as in a child's reader.
    """
    rng = random.Random(f"lessons {split} {seed}")
    lessons = []
    for number, story in enumerate(world.tell(n, f"lessons {seed}", split)):
        questions = questions_about(story, rng)
        text, limit = story.text, LONG_LESSON
        if number % 8:
            text, limit = beginning(story.text, rng.randint(1, 4)), SHORT_LESSON
            questions = [turn for turn in questions if _is_answered_by(text, turn)]
        if questions:
            lessons.append(_after_reading(text, rng.sample(questions, min(limit, len(questions)))))
    return lessons


def beginning(text: str, sentences: int) -> str:
    """The first few sentences of a text."""
    return " ".join(re.split(r"(?<=[.?!]) |(?<=[.?!]\") ", text)[:sentences])


def _is_answered_by(text: str, turn: Turn) -> bool:
    """Does the text hold every name and fact of the question and its answer?"""
    told = set(re.findall(r"\w+", text))
    facts = [word for word in re.findall(r"\w+", f"{turn.user} {turn.assistant}") if word not in _QUESTION_WORDS]
    return all(word in told or word.lower() in told for word in facts)


def conversations(world: World, n: int, seed: int, split: str) -> list[Conversation]:
    """`n` conversations of all kinds; `test` draws unseen stories, and wordings that training never shows."""
    rng = random.Random(f"conversations {split} {seed}")
    stories = world.tell(n, f"conversations {seed}", "train" if split == "train" else "val")
    kinds = rng.choices(list(MIXTURE), weights=list(MIXTURE.values()), k=n)
    return [_conversation(world, kind, next(stories), rng, split) for kind in kinds]


def _conversation(world: World, kind: str, story: Story, rng: random.Random, split: str) -> Conversation:
    if kind == "reading":
        return _after_reading(story.text, rng.sample(questions_about(story, rng), 3))
    if kind == "story":
        request = Turn("story", _request(world, story, rng), story.text)
        return (request, *rng.sample(questions_about(story, rng), rng.randrange(3)))
    if kind == "use":
        thing = rng.choice(world.things)
        question = write(_template(rng.choice(USE_QUESTIONS)), {"thing": thing}, {}, rng.random)[0]
        return (Turn("use", question, f"{thing['purpose']}."),)
    talk = world.talk[kind]
    wording = _template(talk["learn" if split == "train" else "test"])
    return (Turn(kind, write(wording, {}, {}, rng.random)[0], talk["answer"]),)


def _after_reading(text: str, questions: list[Turn]) -> Conversation:
    first, *others = questions
    return (Turn(first.kind, f"{text}\n{first.user}", first.assistant), *others)


def _request(world: World, story: Story, rng: random.Random) -> str:
    template = parse_template(world.talk["story_request"], {"wish": rng.choice(WISHES)})
    return write(template, dict(story.bindings), {}, rng.random)[0]


def is_right(world: World, turn: Turn, answer: str) -> bool:
    """A told story has to be accepted by the judge and to hold all that was asked for; other answers are exact."""
    if turn.kind != "story":
        return answer == turn.assistant
    return _names(world, turn.user) <= _names(world, answer) and world.accepts(answer)


def _names(world: World, text: str) -> set[str]:
    """The characters, kinds, things, colours and places that a text mentions."""
    known = {who[key] for who in world.characters for key in ("name", "kind")}
    known |= {entity["name"].removeprefix("the ") for entity in (*world.things, *world.places, *world.words["colour"])}
    return known & set(re.findall(r"\w+", text))


_QUESTION_WORDS = {
    word
    for _, wordings, answer in ABOUT_A_STORY
    for text in (*wordings, answer)
    for word in re.findall(r"\w+", re.sub(r"\{.*?\}", "", text))
}


@cache
def _template(source: str) -> Node:
    return parse_template(source, {})
