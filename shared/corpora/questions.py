"""Questions with known answers about the story world: about a given story, about things, and small talk."""

from __future__ import annotations

import random
import re
from dataclasses import dataclass
from functools import cache, cached_property
from typing import TYPE_CHECKING, Any

from shared.corpora.base import Conversation, Turn, after_reading
from shared.corpora.grammar import Bindings, Node, Slot, literal_words, parse_template, slots, write

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


@dataclass(frozen=True)
class Ask:
    """A question about a story in its wordings, and its answer: templates over what the story states."""

    kind: str
    wordings: tuple[Node, ...]
    answer: Node

    @cached_property
    def slots(self) -> set[Slot]:
        """What question and answer mention."""
        return set().union(*map(slots, (*self.wordings, self.answer)))

    @cached_property
    def words(self) -> set[str]:
        """The words of question and answer that are there whatever the story."""
        return set().union(*map(literal_words, (*self.wordings, self.answer)))


def read_ask(row: Any, where: str) -> Ask:
    """An entry of a world file: {kind, question or wordings, answer}, or [question, answer] for short."""
    if isinstance(row, list):
        row = {"kind": "what", "question": row[0], "answer": row[1]}
    wordings = row.get("wordings") or [row["question"]]
    return Ask(row["kind"], tuple(parse_template(text, {}, where) for text in wordings),
               parse_template(row["answer"], {}, where))  # fmt: skip


def ask_why(answer: str, where: str) -> Ask:
    """Why the friend felt as the story says."""
    return read_ask({"kind": "why", "wordings": ["Why was {friend} {mood}?"], "answer": answer}, where)


def ask_for_lesson(answer: str) -> Ask:
    """What a plot teaches."""
    wordings = ["What does the story teach?", "What is the lesson of the story?", "What can one learn from it?"]
    return read_ask({"kind": "lesson", "wordings": wordings, "answer": answer}, "lesson")


# {helper} and {helped} are the hero and the friend in the order that the plot says.
ABOUT_A_STORY = tuple(
    read_ask({"kind": kind, "wordings": wordings, "answer": answer}, "questions")
    for kind, wordings, answer in (
        ("who", ("Who brought the {thing}?", "Who came with the {thing}?"), "{hero} the {hero.kind}."),
        ("who", ("Who helped {helped}?", "Who was it that helped {helped}?"), "{helper} the {helper.kind}."),
        (
            "who",
            ("Who met {hero}?", "Whom did {hero} meet?", "Who was there with {hero}?"),
            "{friend} the {friend.kind}.",
        ),
        ("who", ("Who was {mood}?", "Who felt {mood}?"), "{friend} the {friend.kind}."),
        ("use", USE_QUESTIONS, "{thing.purpose}."),
        ("what", ("What did {hero} have?", "What did {hero} bring along?"), "{colour.A} {thing}."),
        ("what", ("What was {friend}?", "What kind of creature was {friend}?"), "{friend} was {friend.a}."),
        ("what", ("What was {hero}?", "What kind of creature was {hero}?"), "{hero} was {hero.a}."),
        ("where", ("Where did {hero} go?", "Where did {hero} take the {thing}?"), "To {place}."),
        (
            "where",
            ("Where did {hero} meet {friend}?", "Where was {friend}?", "Where did they meet?"),
            "{place.At}.",
        ),
        (
            "feeling",
            ("How did {friend} feel?", "How was {friend}?", "In what mood was {friend}?"),
            "{friend} was {mood}.",
        ),
        (
            "colour",
            ("What colour was the {thing}?", "Which colour was the {thing}?", "What was the colour of the {thing}?"),
            "It was {colour}.",
        ),
    )
)


def asked_about(world: World, story: Story) -> tuple[Ask, ...]:
    """Every question that can be asked about a story: those about all stories, the world's own, the plot's own."""
    return (*ABOUT_A_STORY, *world.asks, *story.plot.asks)


def facts_of(world: World, story: Story, rng: random.Random) -> Bindings:
    """What a story states, by the names that questions use: besides its own words the helper, the helped, and
    `wrong`, a colour that the thing does not have."""
    helped = "friend" if story.plot.helper == "hero" else "hero"
    facts = {**story.bindings, "helper": story.bindings[story.plot.helper], "helped": story.bindings[helped]}
    if world.asks:  # drawn only where a question may want it: the small world's draws are those of the committed runs
        facts["wrong"] = rng.choice([colour for colour in world.words["colour"] if colour != facts["colour"]])
    return facts


def questions_about(world: World, story: Story, facts: Bindings, rng: random.Random) -> list[Turn]:
    """Every question about a story once, each in one of its wordings.

    A question about a word that this telling did not need is left out.
    """
    turns = []
    for ask in asked_about(world, story):
        if all(slot.variable in facts for slot in ask.slots):
            wording = ask.wordings[0] if len(ask.wordings) == 1 else rng.choice(ask.wordings)
            question, answer = (write(node, facts, {}, rng.random)[0] for node in (wording, ask.answer))
            turns.append(Turn(ask.kind, question, answer))
    return turns


LONG_LESSON, SHORT_LESSON = 6, 5  # questions, at the most


def reading_lessons(world: World, n: int, seed: int, split: str) -> list[Conversation]:
    """`n` stories with questions about them, one in `world.whole_lessons` whole and the others only begun.

    A fact is found in two sentences long before it is found in twenty: most texts are short, as in a child's reader.
    But what a story teaches, and how it ended, can be asked of a whole story alone.
    """
    rng = random.Random(f"lessons {split} {seed}")
    own_words = {"Why", "Because"}.union(*(ask.words for ask in (*ABOUT_A_STORY, *world.asks)))
    lessons = []
    for number, story in enumerate(world.tell(n, f"lessons {seed}", split)):
        facts = facts_of(world, story, rng)
        questions = questions_about(world, story, facts, rng)
        text, limit = story.text, LONG_LESSON
        if number % world.whole_lessons:
            text, limit = beginning(story.text, rng.randint(1, 4)), SHORT_LESSON
            told = set(re.findall(r"\w+", text))
            known = own_words | ({facts["wrong"]["name"]} if "wrong" in facts else set())
            questions = [turn for turn in questions if _is_answered_by(told, turn, known)]
        if questions:
            lessons.append(after_reading(text, rng.sample(questions, min(limit, len(questions)))))
    return lessons


def beginning(text: str, sentences: int) -> str:
    """The first few sentences of a text."""
    ends = [end.end() for end in re.finditer(r"[.?!]\"?(?=\s|$)", text)]
    return text[: ends[min(sentences, len(ends)) - 1]] if ends else text


def _is_answered_by(told: set[str], turn: Turn, own_words: set[str]) -> bool:
    """Is every word of the question and its answer among those told, unless it is one of the questions' own?"""
    facts = [word for word in re.findall(r"\w+", f"{turn.user} {turn.assistant}") if word not in own_words]
    return all(word in told or word.lower() in told for word in facts)


def conversations(world: World, n: int, seed: int, split: str) -> list[Conversation]:
    """`n` conversations of all kinds; `test` draws unseen stories, and small talk in wordings that are never learnt."""
    rng = random.Random(f"conversations {split} {seed}")
    stories = world.tell(n, f"conversations {seed}", "train" if split == "train" else "val")
    kinds = rng.choices(list(MIXTURE), weights=list(MIXTURE.values()), k=n)
    return [_conversation(world, kind, next(stories), rng, split) for kind in kinds]


def _conversation(world: World, kind: str, story: Story, rng: random.Random, split: str) -> Conversation:
    def questions() -> list[Turn]:
        return questions_about(world, story, facts_of(world, story, rng), rng)

    if kind == "reading":
        return after_reading(story.text, rng.sample(questions(), 3))
    if kind == "story":
        request = Turn("story", _request(world, story, rng), story.text)
        return (request, *rng.sample(questions(), rng.randrange(3)))
    if kind == "use":
        thing = rng.choice(world.things)
        question = write(_template(rng.choice(USE_QUESTIONS)), {"thing": thing}, {}, rng.random)[0]
        return (Turn("use", question, f"{thing['purpose']}."),)
    talk = world.talk[kind]
    wording = _template(talk["learn" if split == "train" else "test"])
    return (Turn(kind, write(wording, {}, {}, rng.random)[0], talk["answer"]),)


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


@cache
def _template(source: str) -> Node:
    return parse_template(source, {})
