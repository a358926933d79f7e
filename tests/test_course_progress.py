"""The learner's notebooks judged from their files, the forecast, and the learner's functions put into the package."""

import datetime
import importlib
import json

import pytest
import torch
from course_tree import answer, change, code, course, save, use_paper

from shared.course import judging, mine, progress
from shared.course.exercises import NOT_DONE, PASSED, WRONG, exercise_cells, resolve, write_exercises
from shared.course.notebooks import EXERCISES, SOLUTIONS, read, write
from shared.errors import CourseError

TODAY = datetime.date(2026, 1, 1)


@pytest.fixture
def chapter(tmp_path, monkeypatch):
    use_paper(monkeypatch, tmp_path)
    found = course(tmp_path)
    write_exercises(found)
    return found


def statuses(chapter, **options) -> list[tuple[str, str]]:
    return [(item.status, item.message) for item in judging.judge_all(chapter.parent, **options)]


def add_cell(chapter, source: str, above: int) -> None:
    notebook = read(chapter / EXERCISES)
    notebook.cells.insert(above, code(source))
    write(notebook, chapter / EXERCISES)


def test_an_untouched_notebook_needs_no_process(chapter, monkeypatch):
    monkeypatch.setattr(judging, "ask_worker", None)
    assert statuses(chapter) == [(NOT_DONE, NOT_DONE)] * 2
    (chapter / EXERCISES).unlink()
    assert statuses(chapter)[0] == (NOT_DONE, "ch98_paper/exercises.ipynb is missing; bring it back with git")


def test_learners_are_judged_in_a_process_of_their_own(chapter):
    """One that hangs and one that kills Python get a line each; what the notebook would run besides does not run."""
    add_cell(chapter, "import time\nprint('training')\ntime.sleep(999)\nmodel = time.sleep(999)", above=2)
    answer(chapter, 1, "while True:\n    pass")
    answer(chapter, 2, "import os\nos._exit(3)")
    assert statuses(chapter, seconds=1) == [
        (WRONG, "it runs longer than 1 seconds: does a loop never end?"),
        (WRONG, "it crashes Python (exit code 3)"),
    ]


def test_right_and_wrong_answers_make_a_report(chapter, capsys):
    answer(chapter, 1, "print('so far so good')\nreturn x + x")
    answer(chapter, 2, "return x - OFFSET")
    done = progress.measure(chapter.parent)
    assert [item.status for item in done.judged] == [PASSED, WRONG]
    report = progress.report(done, 5, TODAY)
    assert "ch98_paper              1 of 2             23" in report  # 10 for 98.2, 13 for the lesson
    assert "98.2 Write add_one: the result is not one more" in report
    assert "next: exercise 98.2, Write add_one (ch98_paper/exercises.ipynb, about 10 minutes)" in report
    assert "at 5 hours a week: 0.1 weeks, until 2026-01-02" in report and "(23 minutes are left" in report
    machine = json.loads(progress.as_json(done, None, TODAY))
    assert machine["passed"] == 1 and machine["next"] == "98.2" and machine["done_on"] is None


def attempt(chapter, number: int = 1):
    exercise = [exercise for exercise, _ in exercise_cells(chapter)][number - 1]
    return judging.learner_function(chapter / EXERCISES, exercise)


def test_helpers_and_second_attempts_count(chapter):
    add_cell(chapter, "%matplotlib inline\nTWO = 2.0\ndef helper(x): return TWO * x", above=3)
    answer(chapter, 1, "return helper(x)")
    assert attempt(chapter)(torch.ones(2)).tolist() == [2, 2]
    add_cell(chapter, "def double(x): return 'second'", above=6)
    assert attempt(chapter)(torch.ones(2)) == "second"
    add_cell(chapter, "def double(x): return 'third'", above=11)  # below the cell of 98.2
    assert attempt(chapter)(torch.ones(2)) == "second"
    add_cell(chapter, "def broken(:", above=3)
    assert attempt(chapter, 2) is not None


def test_cells_that_cannot_be_judged_say_why(chapter):
    change(chapter / EXERCISES, "def add_one(x):", "def add_one(x:")
    with pytest.raises(CourseError, match="line 4 of the cell is not Python"):
        attempt(chapter, 2)
    change(chapter / EXERCISES, "def double(x):", "def twice(x):")
    with pytest.raises(CourseError, match="the cell defines no `double`"):
        attempt(chapter)
    change(chapter / EXERCISES, "import torch", "import torch_typo")
    with pytest.raises(CourseError, match="line 1 of the cell fails: ModuleNotFoundError"):
        attempt(chapter)
    notebook = read(chapter / EXERCISES)
    notebook.cells = notebook.cells[:2]
    write(notebook, chapter / EXERCISES)
    with pytest.raises(CourseError, match=r"its cell is missing from exercises.ipynb"):
        attempt(chapter)


def test_a_passed_exercise_proves_its_lesson_read(chapter):
    (chapter / "01_doubling.ipynb").unlink()
    root = chapter.parent
    for number, source in enumerate(["1", "def double(x):\n    return x", "2"], start=1):
        metadata = {"promote": "paper/numbers.py"} if number == 2 else {}
        save(chapter / f"0{number}_x.ipynb", code(source, **metadata))
    save(root / "ch99_later" / "01_x.ipynb", code("1"))
    first, second = (judging.Judged(chapter, exercise, NOT_DONE, NOT_DONE) for exercise, _ in exercise_cells(chapter))
    passed = [judging.Judged(chapter, item.exercise, PASSED, PASSED) for item in (first, second)]

    def unread(*judged):
        return [path.name for path in progress.unread_lessons(judged, root) if path.parent == chapter]

    assert unread(first, second) == ["01_x.ipynb", "02_x.ipynb", "03_x.ipynb"]
    assert unread(passed[0], second) == ["03_x.ipynb"]  # the second lesson builds `double`
    assert unread(first, passed[1]) == ["01_x.ipynb", "02_x.ipynb", "03_x.ipynb"]  # no lesson builds `add_one`


def test_the_forecast():
    assert progress.finish_date(600, 5, TODAY) == datetime.date(2026, 1, 15)
    assert progress.finish_date(0, 5, TODAY) == TODAY
    for hours in (0, -3, 200, float("nan")):
        with pytest.raises(CourseError, match="give a number above 0"):
            progress.finish_date(600, hours, TODAY)


def test_the_command(chapter, capsys):
    assert progress.main(["--hours-per-week", "5"], chapter.parent) == 0
    printed = capsys.readouterr().out
    assert "0 of 2" in printed and "next: exercise 98.1" in printed and "weeks, until" in printed


# ---- mine


def paper():
    return importlib.import_module("paper.numbers"), importlib.import_module("paper.uses")


def test_the_learners_function_runs_everywhere(chapter, capsys):
    numbers, uses = paper()
    answer(chapter, 1, "double.calls += 1\nreturn x + x")
    add_cell(chapter, "def double_was_called(): return double.calls", above=3)
    answer(chapter, 2, "return x + 2")
    own = judging.learner_function(chapter / EXERCISES, exercise_cells(chapter)[0][0])
    own.calls = 0
    passed = mine.Mine({"paper.numbers.double": own}, [("98.2", "the result is not one more")], 2)
    ours = numbers.double
    mine.install(passed, package="paper")
    assert capsys.readouterr().out == (
        "yours: 1 of 2 (paper.numbers.double)\nrefused: exercise 98.2: the result is not one more\n"
    )
    x = torch.ones(1)
    results = [numbers.double(x), uses.double(x), uses.TABLE["double"](x), uses.by_default(x), uses.by_keyword(x) - 1]
    assert torch.cat(results).tolist() == [2.0] * 5 and own.calls == 5
    assert numbers.add_one(x).item() == 2 and numbers.double is own and ours is not own


def test_load_mine_takes_what_passes_and_refuses_what_does_not(chapter, monkeypatch):
    def in_this_process(tasks, root, notebook, seconds):
        for folder, exercise in tasks:
            yield exercise.id, *judging.judge_one(folder, exercise, notebook, root)

    monkeypatch.setattr(judging, "ask_worker", in_this_process)
    answer(chapter, 1, "return x + x")
    answer(chapter, 2, "return x + 2")
    found = mine.load_mine(root=chapter.parent)
    assert list(found.passed) == ["paper.numbers.double"] and found.total == 2
    assert found.refused == [("98.2", "the result is not one more")]
    assert found.passed["paper.numbers.double"](torch.ones(1)).item() == 2
    assert mine.load_mine([], root=chapter.parent).total == 0


def test_all_solutions_in_give_bitwise_the_same(chapter):
    numbers, uses = paper()
    x = torch.randn(3, 5)
    before = uses.by_keyword(x)
    exercises = [exercise for exercise, _ in exercise_cells(chapter)]
    solutions = {item.replaces: judging.learner_function(chapter / SOLUTIONS, item) for item in exercises}
    mine.install(mine.Mine(solutions, [], 2), package="paper")
    assert numbers.double is solutions["paper.numbers.double"] and torch.equal(uses.by_keyword(x), before)


def test_targets_are_resolved_down_to_methods():
    owner, name = resolve("shared.course.notebooks.CodeCell.source")
    assert (owner.__name__, name) == ("CodeCell", "source")
    for target in ("shared.course.notebooks.nothing", "shared.nowhere.f", "nowhere"):
        with pytest.raises(CourseError, match=f"{target}: there is no such function"):
            resolve(target)
