"""How far the learner is, from the files alone: a table by chapter, the next exercise, and when all will be done."""

import argparse
import datetime
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from shared.course.exercises import NOT_DONE, PASSED, WRONG
from shared.course.judging import SECONDS_EACH, Judged, judge_all
from shared.course.notebooks import EXERCISES, ROOT, all_lessons, chapters, stated_minutes
from shared.course.promote import promoted
from shared.errors import CourseError


@dataclass(frozen=True)
class Progress:
    """What is done and what is left. `unread` are the lessons that still count as unread."""

    judged: list[Judged]
    unread: list[Path]
    root: Path = ROOT

    @property
    def passed(self) -> list[Judged]:
        return [item for item in self.judged if item.status == PASSED]

    @property
    def next(self) -> Judged | None:
        """The first exercise that does not pass yet."""
        return next((item for item in self.judged if item.status != PASSED), None)

    def minutes_left(self, chapter: Path | None = None) -> int:
        """Minutes for the exercises that do not pass and the lessons that are unread, of one chapter or of all."""
        exercises = [item for item in self.judged if item.status != PASSED and chapter in (None, item.chapter)]
        lessons = [path for path in self.unread if chapter in (None, path.parent)]
        return sum(item.exercise.minutes for item in exercises) + sum(sum(stated_minutes(path)) for path in lessons)


def measure(root: Path = ROOT, seconds: float = SECONDS_EACH) -> Progress:
    """Judge the learner's notebooks, each exercise within `seconds`."""
    judged = judge_all(root, seconds=seconds)
    return Progress(judged, unread_lessons(judged, root), root)


def unread_lessons(judged: Sequence[Judged], root: Path = ROOT) -> list[Path]:
    """The lessons after the last one that an exercise proves read.

    Nobody notes what was read. A passed exercise shows that the lesson which builds its function was, and all lessons
    before it; where only a later chapter builds the function, that the chapters before the exercise's were.
    """
    lessons = all_lessons(root)
    builders = {
        f"{item.module.removesuffix('.py').replace('/', '.')}.{name}": item.cell.path
        for item in promoted(root)
        for name in item.definition.names
    }
    read = 0
    for item in judged:
        if item.status != PASSED:
            continue
        target = item.exercise.replaces
        builder = builders.get(target) or builders.get(target.rpartition(".")[0])  # a method's class is built
        if builder and builder.parent.name <= item.chapter.name:
            read = max(read, lessons.index(builder) + 1)
        else:
            read = max(read, sum(path.parent < item.chapter for path in lessons))
    return lessons[read:]


def finish_date(minutes: int, hours_per_week: float, today: datetime.date) -> datetime.date:
    """The day on which `minutes` of work are done, spread evenly over the weeks."""
    if not 0 < hours_per_week <= 168:
        raise CourseError(f"--hours-per-week {hours_per_week:g}: give a number above 0 and at most 168")
    return today + datetime.timedelta(days=math.ceil(minutes / 60 / hours_per_week * 7))


def table(progress: Progress) -> str:
    """One line a chapter: exercises that pass, minutes left, and the exercises that are wrong."""
    lines = [f"{'chapter':<18}{'exercises':>12}{'minutes left':>15}"]
    for chapter in chapters(progress.root):
        items = [item for item in progress.judged if item.chapter == chapter]
        done = f"{sum(item.status == PASSED for item in items)} of {len(items)}"
        lines.append(f"{chapter.name:<18}{done:>12}{progress.minutes_left(chapter):>15}")
    done = f"{len(progress.passed)} of {len(progress.judged)}"
    lines.append(f"{'together':<18}{done:>12}{progress.minutes_left():>15}")
    return "\n".join(lines)


def report(progress: Progress, hours_per_week: float | None, today: datetime.date) -> str:
    """Everything that `progress` prints."""
    parts = [table(progress)]
    unfinished = [item for item in progress.judged if item.status != PASSED and item.message != NOT_DONE]
    if unfinished:
        parts.append("\n".join(f"{item.exercise.id} {item.exercise.title}: {item.message}" for item in unfinished))
    following = progress.next
    if following:
        exercise = following.exercise
        place = f"{following.chapter.name}/{EXERCISES}"
        parts.append(f"next: exercise {exercise.id}, {exercise.title} ({place}, about {exercise.minutes} minutes)")
    elif progress.judged:
        parts.append("every exercise passes: `make run MINE=1` runs the model on your code")
    else:
        parts.append("there are no exercises yet")
    if hours_per_week is not None:
        minutes = progress.minutes_left()
        date = finish_date(minutes, hours_per_week, today)
        parts.append(
            f"at {hours_per_week:g} hours a week: {minutes / 60 / hours_per_week:.1f} weeks, until {date.isoformat()}\n"
            f"({minutes} minutes are left: the stated minutes of each exercise that does not pass yet, and of each "
            f"notebook after the last one whose function you have rebuilt, {len(progress.unread)} in all)"
        )
    return "\n\n".join(parts)


def as_json(progress: Progress, hours_per_week: float | None, today: datetime.date) -> str:
    minutes = progress.minutes_left()
    following = progress.next
    date = finish_date(minutes, hours_per_week, today).isoformat() if hours_per_week is not None else None
    return json.dumps(
        {
            "passed": len(progress.passed),
            "exercises": len(progress.judged),
            "wrong": {item.exercise.id: item.message for item in progress.judged if item.status == WRONG},
            "next": following.exercise.id if following else None,
            "minutes_left": minutes,
            "done_on": date,
        }
    )


def main(argv: Sequence[str] | None = None, root: Path = ROOT) -> int:
    """The command `python -m shared progress`."""
    parser = argparse.ArgumentParser(
        prog="python -m shared progress",
        description="Judge your exercises from the files and say what comes next.",
        epilog="example: python -m shared progress --hours-per-week 5",
    )
    parser.add_argument("--hours-per-week", type=float, metavar="N", help="forecast: when you will be done")
    parser.add_argument("--seconds", type=float, default=SECONDS_EACH, metavar="S", help="limit for one exercise")
    parser.add_argument("--json", action="store_true", help="print one line for a program to read")
    options = parser.parse_args(argv)
    today = datetime.date.today()
    if options.hours_per_week is not None:
        finish_date(0, options.hours_per_week, today)  # a bad number is said before anything runs
    if not options.seconds > 0:
        raise CourseError(f"--seconds {options.seconds:g}: give a number above 0")
    progress = measure(root, options.seconds)
    print((as_json if options.json else report)(progress, options.hours_per_week, today))
    return 0
