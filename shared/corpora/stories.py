"""The story world: a small world whose facts hold, told by a grammar whose probabilities are exact.

    world = World.load()
    world.stories(2, seed=1)            two stories
    world.log_probability(story)        ln p(story), exactly; -inf for a text that is no story of this world
    world.accepts(story)                the judge
    world.conversations(100, seed=1)    questions with known answers

A world is a TOML file: `worlds/small.toml` is the one that `make run` learns in minutes, `worlds/full.toml`
(`World.load(base="full")`) a larger one, with 46 plots, paragraphs, two tenses and lessons. A story is drawn in this
order: a plot; a pair of the hero's kind and a thing that has the use which the plot needs; the hero's name; a friend of
another kind; a colour; a place; then, from left to right, the choices and words of the plot's template. Some pairs of
kind and thing are never drawn for training: they make the `heldout` split, which shows whether a model has understood
that any animal may carry any thing.
"""

import math
import random
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from shared.corpora import questions
from shared.corpora.base import Conversation, Turn
from shared.corpora.grammar import (
    Bindings,
    Choice,
    Entity,
    Fork,
    Node,
    Reader,
    Sequence,
    least_mentions,
    parse_template,
    slots,
    spell_out,
    thin_out,
    write,
)
from shared.corpora.questions import Ask
from shared.errors import CourseError

WORLDS = Path(__file__).parent / "worlds"
CAST = ("hero", "thing", "friend", "colour", "place")  # bound before a story is told, and mentioned in every story
HELD_OUT_SHARE = 8  # one pair of kind and thing in eight is never seen in training


class Tense(dict):
    """The past or the present as an entity: its attribute "went/goes" is the form that belongs to it."""

    def __init__(self, name: str):
        super().__init__(name=name)

    def __missing__(self, verb: str) -> str:
        past, present = verb.split("/")
        return past if self["name"] == "past" else present

    def __contains__(self, attribute: object) -> bool:
        return attribute == "name" or str(attribute).count("/") == 1


@dataclass(frozen=True)
class Plot:
    name: str
    use: str | None  # what the thing must be good for; None for any thing
    helper: str  # "hero" or "friend": who helps whom
    template: Node
    asks: tuple[Ask, ...]  # questions of this plot alone, with their answers
    lesson: str | None = None  # what it teaches: a key of the world's lessons


@dataclass(frozen=True)
class Story:
    text: str
    plot: Plot
    bindings: Bindings
    log_p: float  # ln of its probability in its split


class World:
    """Characters, things, places and plots, and everything that follows from them."""

    def __init__(self, tables: dict, name: str = "world"):
        self.name = name
        _require_tables(tables, name)
        self.fragments: dict[str, str] = tables.get("fragments", {})
        self.words: dict[str, list[Entity]] = {"tense": [Tense("past"), Tense("present")]}
        self.words |= {key: [_word(value) for value in values] for key, values in tables["lists"].items()}
        self.characters = [
            _character(row["kind"], who, sex)
            for row in tables["characters"]
            for sex in ("she", "he")
            for who in row.get(sex, [])
        ]
        self.places = [_place(row) for row in tables["places"]]
        self.uses: dict[str, str] = tables["uses"]
        self.things: list[Entity] = [
            {**_word(thing), "use": use, "purpose": _capital(self.uses.get(use, ""))}
            for use, names in tables["things"].items()
            for thing in names
        ]
        self.talk: dict = tables.get("talk", {})
        self.lessons: dict[str, dict[str, str]] = tables.get("lessons", {})
        self.whole_lessons: int = tables.get("whole_lessons", 8)  # one lesson in so many is about a whole story
        self.asks = tuple(questions.read_ask(row, f"{name}, [[asks]]") for row in tables.get("asks", []))
        self.kinds = list(dict.fromkeys(character["kind"] for character in self.characters))
        self.plots = [self._plot(row) for row in tables["plots"]]
        _require_sense(self)

    @classmethod
    def load(cls, own: str | Path | None = None, base: str = "small") -> "World":
        """The course's world `base`, with the tables of the learner's own file added to it."""
        tables = _read_toml(WORLDS / f"{base}.toml")
        if own is None:
            return cls(tables, base)
        return cls(merge_tables(tables, _read_toml(Path(own))), str(own))

    def _plot(self, row: dict) -> Plot:
        where = f"{self.name}, plot '{row.get('name', '?')}'"
        if "name" not in row or "story" not in row:
            raise CourseError(f"{where}: a plot needs a name and a story: add them")
        asks = [questions.read_ask(ask, where) for ask in row.get("asks", [])]
        fragments, lesson = self.fragments, row.get("lesson")
        if lesson is not None:
            if lesson not in self.lessons:
                raise CourseError(f"{where}: nothing is known of the lesson '{lesson}': define it under [lessons]")
            fragments = {**fragments, "lesson": self.lessons[lesson]["told"]}
            asks.append(questions.ask_for_lesson(self.lessons[lesson]["answer"]))
        if "why" in row:
            asks.append(questions.ask_why(row["why"], where))
        template = parse_template(row["story"], fragments, where)
        return Plot(row["name"], row.get("use"), row.get("helper", "hero"), template, tuple(asks), lesson)

    # -- drawing ----------------------------------------------------------------------------------------------

    def stories(self, n: int, seed: int, split: str = "train") -> list[str]:
        """`n` stories, the same for the same seed. Splits: train, val (the same distribution), heldout."""
        return [story.text for story in self.tell(n, seed, split)]

    def tell(self, n: int, seed: int | str, split: str = "train") -> Iterator[Story]:
        """Stories together with the facts that they state."""
        draw = random.Random(f"{self.name} {split} {seed}").random  # a string seed: the splits never meet

        def pick(options):
            return options[int(draw() * len(options))]

        plots = self._plots_of(split)
        for _ in range(n):
            plot = pick(plots)
            kind, thing = pick(self._pairs[split == "heldout", plot.use])
            hero, friend = pick(self._of_kind[kind]), pick(self._not_of_kind[kind])
            cast = (hero, thing, friend, pick(self.words["colour"]), pick(self.places))
            bindings: Bindings = dict(zip(CAST, cast, strict=True))
            text, log_p = write(plot.template, bindings, self.words, draw)
            yield Story(text, plot, bindings, log_p + self._cast_log_p(plot, kind, split))

    def _cast_log_p(self, plot: Plot, kind: str, split: str) -> float:
        """ln of the probability of the plot and the cast: all are drawn uniformly, one after the other."""
        sizes = (len(self._plots_of(split)), len(self._pairs[split == "heldout", plot.use]), len(self._of_kind[kind]),
                 len(self._not_of_kind[kind]), len(self.words["colour"]), len(self.places))  # fmt: skip
        return -math.log(math.prod(sizes))

    def _plots_of(self, split: str) -> list[Plot]:
        if split not in ("train", "val", "heldout"):
            raise CourseError(f"split '{split}': there are train, val and heldout")
        return [plot for plot in self.plots if self._pairs[split == "heldout", plot.use]]

    @cached_property
    def _pairs(self) -> dict[tuple[bool, str | None], list[tuple[str, Entity]]]:
        """(kind, thing) pairs by (held out?, use)."""
        pairs: dict[tuple[bool, str | None], list[tuple[str, Entity]]] = {}
        for use in (None, *self.uses):
            things = [thing for thing in self.things if use in (None, thing["use"])]
            both = [(kind, thing) for thing in things for kind in self.kinds]
            pairs[True, use] = [pair for pair in both if self._is_held_out(*pair)]
            pairs[False, use] = [pair for pair in both if not self._is_held_out(*pair)]
        return pairs

    def _is_held_out(self, kind: str, thing: Entity) -> bool:
        number = self.kinds.index(kind) + 3 * self.things.index(thing)
        return number % HELD_OUT_SHARE == HELD_OUT_SHARE - 1

    @cached_property
    def _of_kind(self) -> dict[str, list[Entity]]:
        return {kind: [who for who in self.characters if who["kind"] == kind] for kind in self.kinds}

    @cached_property
    def _not_of_kind(self) -> dict[str, list[Entity]]:
        return {kind: [who for who in self.characters if who["kind"] != kind] for kind in self.kinds}

    # -- reading ----------------------------------------------------------------------------------------------

    def readings(self, text: str, split: str = "train") -> list[Story]:
        """Every way to derive the text as a story of the split, each with its ln p. The grammar is unambiguous:
        a story has exactly one."""
        found = []
        plots = {plot.name: plot for plot in self._plots_of(split)}
        for name, bindings, log_p in Reader(text, self._candidates).complete(self._fork):
            plot, kind, thing = plots.get(name), bindings["hero"]["kind"], bindings["thing"]
            if plot is None or plot.use not in (None, thing["use"]) or kind == bindings["friend"]["kind"]:
                continue
            if self._is_held_out(kind, thing) == (split == "heldout"):
                found.append(Story(text, plot, bindings, log_p + self._cast_log_p(plot, kind, split)))
        return found

    @cached_property
    def _fork(self) -> Fork:
        return Fork.merge({plot.name: plot.template.parts if isinstance(plot.template, Sequence) else (plot.template,)
                           for plot in self.plots})  # fmt: skip

    def _candidates(self, variable: str, bindings: Bindings) -> tuple[list[Entity], float]:
        """What a variable may be at its first mention. The cast was drawn beforehand: `readings` accounts for it."""
        cast: dict[str, list[Entity]] = {
            "hero": self.characters,
            "friend": self.characters,
            "thing": self.things,
            "place": self.places,
        }
        if variable in cast:
            return cast[variable], 0.0
        words = self.words[variable]
        return words, 0.0 if variable == "colour" else -math.log(len(words))

    def log_probability(self, text: str, split: str = "train") -> float:
        """ln p(text) under the split's distribution; -inf for a text that it cannot contain."""
        readings = [story.log_p for story in self.readings(text, split)]
        return max(readings) + math.log(sum(math.exp(p - max(readings)) for p in readings)) if readings else -math.inf

    def read(self, text: str) -> Story | None:
        """The story behind a text, or None if it is none."""
        return next((story for split in ("train", "heldout") for story in self.readings(text, split)), None)

    def accepts(self, text: str) -> bool:
        """The judge: is this, from first word to last, a story that could happen in this world?"""
        return self.read(text) is not None

    def explain(self, text: str) -> str:
        """Why the judge rejects a text: the place from which no story could have gone on like this."""
        if self.accepts(text):
            return "a story of this world"
        reader = Reader(text, self._candidates)
        if any(True for _ in reader.complete(self._fork)):
            return "well told, but the thing is of no use in this plot, or hero and friend are of one kind"
        if reader.furthest == len(text):
            return "it breaks off before the end"
        stop = text.rfind(" ", 0, reader.furthest) + 1  # the word that went wrong, whole
        start = max(0, stop - 40)
        return f"no story of this world goes on like this: ...{text[start:stop]} >>> {text[stop : stop + 30]}"

    # -- small worlds for proofs --------------------------------------------------------------------------------

    def reduced(self, seed: int, open_choices: int = 6) -> "World":
        """A world so small that all its stories can be listed: one plot's choices mostly fixed, short lists."""
        rng = random.Random(seed)
        small = object.__new__(World)
        small.__dict__.update(
            name=f"{self.name} reduced {seed}", fragments={}, uses=self.uses, talk={}, lessons={}, asks=(),
            whole_lessons=self.whole_lessons,
        )  # fmt: skip
        small.kinds = rng.sample(self.kinds, 3)
        small.characters = [who for kind in small.kinds for who in self._of_kind[kind][:1]]
        small.places = rng.sample(self.places, 2)
        small.words = {
            key: [rng.choice(values)] if key == "tense" else rng.sample(values, min(2, len(values)))
            for key, values in self.words.items()
        }
        small.plots = [
            replace(plot, template=_thin_out(plot.template, rng, open_choices)) for plot in rng.sample(self.plots, 2)
        ]
        small.things = [rng.choice([thing for thing in self.things if plot.use in (None, thing["use"])])
                        for plot in small.plots]  # fmt: skip
        small.things = [thing for i, thing in enumerate(small.things) if thing not in small.things[:i]]
        return small

    def every_story(self, split: str = "train") -> Iterator[str]:
        """Every story of a (reduced) world, once for each way of telling it."""
        for plot in self._plots_of(split):
            for kind, thing in self._pairs[split == "heldout", plot.use]:
                for hero in self._of_kind[kind]:
                    for friend in self._not_of_kind[kind]:
                        for colour in self.words["colour"]:
                            for place in self.places:
                                cast = dict(zip(CAST, (hero, thing, friend, colour, place), strict=True))
                                for text, _ in spell_out(plot.template, cast, self.words):
                                    yield text

    # -- questions ----------------------------------------------------------------------------------------------

    def reading_lessons(self, n: int, seed: int, split: str = "train") -> list[Conversation]:
        """Stories, each with several questions about it, for pretraining."""
        return questions.reading_lessons(self, n, seed, split)

    def conversations(self, n: int, seed: int, split: str = "train") -> list[Conversation]:
        """Conversations of every kind with known answers. Splits: train, and test with unseen stories and wordings."""
        return questions.conversations(self, n, seed, split)

    def is_right(self, turn: Turn, answer: str) -> bool:
        """Is this a right answer? A story has to be one, and to hold what was asked for; all else is exact."""
        return questions.is_right(self, turn, answer)


def merge_tables(base: dict, own: dict) -> dict:
    """A learner's tables added to the course's: lists grow, tables merge key by key, single values are replaced."""
    merged = dict(base)
    for key, value in own.items():
        known = merged.get(key)
        if isinstance(known, dict) and isinstance(value, dict):
            merged[key] = merge_tables(known, value)
        elif isinstance(known, list) and isinstance(value, list):
            merged[key] = known + value
        elif known is not None and type(known) is not type(value):
            raise CourseError(f"world file: '{key}' has to be a {type(known).__name__}, as in worlds/small.toml")
        else:
            merged[key] = value
    return merged


def _read_toml(path: Path) -> dict:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CourseError(f"world file {path}: {error.strerror or error}: check the path") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise CourseError(f"world file {path}: not valid TOML: {error}") from None


def _require_tables(tables: dict, name: str) -> None:
    for key in ("lists", "characters", "places", "uses", "things", "plots"):
        if not tables.get(key):
            raise CourseError(f"{name}: the table '{key}' is missing or empty: see worlds/small.toml for its form")
    whole = tables.get("whole_lessons", 1)
    if not isinstance(whole, int) or whole < 1:
        raise CourseError(f"{name}: whole_lessons is {whole!r}: one lesson in so many is whole, so use 1 or more")
    shapes = {"characters": ("kind",), "places": ("name", "at")}
    for table, keys in shapes.items():
        for row in tables[table]:
            if not isinstance(row, dict) or any(not isinstance(row.get(key), str) for key in keys):
                raise CourseError(
                    f"{name}: every entry of [[{table}]] needs {' and '.join(keys)}; this one does not: {row}"
                )
    for key, values in (*tables["lists"].items(), *tables["things"].items()):
        if not values or not all(isinstance(value, str) and value for value in values):
            raise CourseError(f"{name}: '{key}' has to be a list of words")


def _require_sense(world: World) -> None:
    """What a world needs so that its stories hold together and can be read in one way only."""
    named: dict[str, list[Entity]] = {"character": world.characters, "thing": world.things, "place": world.places}
    named |= {f"word of '{key}'": words for key, words in world.words.items()}
    for what, entities in named.items():
        names = [entity["name"] for entity in entities]
        for name in names:
            if names.count(name) > 1:
                raise CourseError(f"{world.name}: the {what} '{name}' is listed twice: rename or remove one")
    if len(world.kinds) < 2:
        raise CourseError(f"{world.name}: a story needs a hero and a friend of two kinds: add a kind with a name")
    examples: dict[str, list[Entity]] = {
        "hero": world.characters,
        "friend": world.characters,
        "thing": world.things,
        "place": world.places,
    }
    for plot in world.plots:
        where = f"{world.name}, plot '{plot.name}'"
        if plot.use is not None and not any(thing["use"] == plot.use for thing in world.things):
            raise CourseError(f"{where}: no thing has the use '{plot.use}': add one under [things]")
        for slot in slots(plot.template).union(
            *(slots(node) for ask in plot.asks for node in (*ask.wordings, ask.answer))
        ):
            known = examples.get(slot.variable) or world.words.get(slot.variable)
            if not known or slot.attribute not in known[0]:
                raise CourseError(
                    f"{where}: nothing is known as {{{slot.variable}.{slot.attribute}}}: define it under [lists]"
                )
        for variable in CAST:
            if least_mentions(plot.template, variable) < 2:
                raise CourseError(
                    f"{where}: every telling has to mention {{{variable}}} twice: a reader must be able to foresee it"
                )


def _an(word: str) -> str:
    return f"{'an' if word[0].lower() in 'aeiou' else 'a'} {word}"


def _capital(word: str) -> str:
    return word[:1].upper() + word[1:]


def _word(word: str) -> Entity:
    return {"name": word, "Name": _capital(word), "a": _an(word), "A": _capital(_an(word))}


def _character(kind: str, name: str, he: str) -> Entity:
    him, his = {"she": ("her", "her"), "he": ("him", "his")}[he]
    return {"name": name, "kind": kind, "a": _an(kind), "he": he, "He": _capital(he), "him": him, "his": his}


def _place(row: dict) -> Entity:
    return {"name": row["name"], "at": row["at"], "At": _capital(row["at"])}


def _thin_out(template: Node, rng: random.Random, open_choices: int) -> Node:
    """The template with about `open_choices` of its choices left open, two options each."""
    share = open_choices / max(1, _count_choices(template))
    return thin_out(template, lambda n: sorted(rng.sample(range(n), 2 if rng.random() < share else 1)))


def _count_choices(node: Node) -> int:
    match node:
        case Choice(children):
            return 1 + sum(map(_count_choices, children))
        case Sequence(children):
            return sum(map(_count_choices, children))
    return 0
