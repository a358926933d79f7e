"""Exercises: solutions pass, stubs are "not done yet", wrong answers get their own diagnosis, files are fresh."""

import copy
import importlib.util
import subprocess
from pathlib import Path

import pytest
from course_tree import ADD_ONE, DOUBLE, answer, change, code, course, exercise_cell, save, use_paper
from nbformat.v4 import new_code_cell

from shared.course.checks import judge, load_checks
from shared.course.exercises import (
    NOT_DONE,
    WRONG,
    differs_from_shared,
    exercise_cells,
    generate,
    stale,
    surviving_lines,
    write_exercises,
)
from shared.course.judging import learner_function
from shared.course.notebooks import EXERCISES, ROOT, SOLUTIONS, chapter_number, chapters, read, write
from shared.errors import CourseError


def wrong_answers(chapter: Path, root: Path) -> dict[str, list[tuple[str, str]]]:
    """What tests/wrong_answers/chNN.py lists: by exercise, the source of a wrong function and its diagnosis."""
    path = root / "tests" / "wrong_answers" / f"{chapter.name[:4]}.py"
    if not path.exists():
        return {}
    spec = importlib.util.spec_from_file_location(f"wrong_answers_{chapter.name}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.WRONG_ANSWERS


def complaints(chapter: Path, root: Path, scratch: Path) -> list[str]:
    """Everything that is wrong with the exercises of a chapter, judged in this process."""
    exercises = exercise_cells(chapter)
    checks = load_checks(chapter_number(chapter), root)
    wrong = wrong_answers(chapter, root)
    ids = {exercise.id for exercise, _ in exercises}
    found = [f"{id}: an exercise without a check" for id in sorted(ids - checks.keys())]
    found += [f"{id}: a check without an exercise" for id in sorted(checks.keys() - ids)]
    found += [f"{id}: wrong answers without an exercise" for id in sorted(wrong.keys() - ids)]
    found += [*surviving_lines(chapter), *filter(None, [stale(chapter)])]
    found += filter(None, [differs_from_shared(cell, exercise) for exercise, cell in exercises])
    stubs = scratch / chapter.name / EXERCISES
    stubs.parent.mkdir(parents=True)
    stubs.write_text(generate(chapter), encoding="utf-8")
    for exercise, cell in exercises:
        if exercise.id not in checks:
            continue
        check = checks[exercise.id]
        verdict = judge(check, learner_function(chapter / SOLUTIONS, exercise))
        if not verdict.passed:
            found.append(f"{cell}: exercise {exercise.id}: the solution fails: {verdict.message}")
        verdict = judge(check, learner_function(stubs, exercise))
        if (verdict.status, verdict.message) != (NOT_DONE, NOT_DONE):
            found.append(f"exercise {exercise.id}: the untouched stub is `{verdict.message}`, not `{NOT_DONE}`")
        listed = wrong.get(exercise.id, [])
        if len(listed) < 3:
            found.append(f"exercise {exercise.id}: {len(listed)} wrong answers; list three")
        for number, (source, expected) in enumerate(listed, start=1):
            notebook = second_attempt(chapter, exercise.id, source, scratch / f"{exercise.id}-{number}")
            verdict = judge(check, learner_function(notebook, exercise))
            others = [other for _, other in listed if other != expected and other in verdict.message]
            if verdict.status != WRONG or expected not in verdict.message or others:
                said = f"`{verdict.message}`" + (f", which also says {others}" if others else "")
                found.append(f"exercise {exercise.id}: wrong answer {number} should get `{expected}`, but gets {said}")
        if len({expected for _, expected in listed}) < len(listed):
            found.append(f"exercise {exercise.id}: two wrong answers share a diagnosis; each has its own")
    return found


def second_attempt(chapter: Path, id: str, source: str, folder: Path) -> Path:
    """The solutions with another function written in a cell below the solution of one exercise."""
    notebook = copy.deepcopy(read(chapter / SOLUTIONS))
    at = next(i for i, cell in enumerate(notebook.cells) if dict(cell.metadata.get("exercise", {})).get("id") == id)
    notebook.cells.insert(at + 1, new_code_cell(source))
    write(notebook, folder / chapter.name / SOLUTIONS)
    return folder / chapter.name / SOLUTIONS


# ---- the course itself


@pytest.mark.parametrize("chapter", chapters(), ids=lambda chapter: chapter.name)
def test_the_exercises_of(chapter, tmp_path):
    found = complaints(chapter, ROOT, tmp_path)
    assert not found, "\n".join(found)


def test_every_file_of_checks_and_wrong_answers_belongs_to_a_chapter():
    files = [*(ROOT / "shared/course/checks").glob("ch*.py"), *(ROOT / "tests/wrong_answers").glob("ch*.py")]
    assert {path.stem for path in files} <= {chapter.name[:4] for chapter in chapters()}


# ---- the machinery, on a small course


WRONG_FILE = "tests/wrong_answers/ch98.py"


@pytest.fixture
def chapter(tmp_path, monkeypatch):
    use_paper(monkeypatch, tmp_path)
    found = course(tmp_path)
    write_exercises(found)
    return found


def only_complaint(chapter: Path) -> str:
    found = complaints(chapter, chapter.parent, chapter.parent / "scratch")
    assert len(found) == 1, found
    return found[0]


def test_a_sound_chapter_has_no_complaints(chapter):
    assert complaints(chapter, chapter.parent, chapter.parent / "scratch") == []


def test_what_the_learner_gets(chapter):
    notebook = read(chapter / EXERCISES)
    sources = [cell.source for cell in notebook.cells]
    assert sources[2].startswith("### Exercise 98.1: Write double\n\n●●○○○ difficulty · ●●●●○ importance")
    assert sources[3:5] == ["Write `double`.", DOUBLE[: DOUBLE.index("    # BEGIN")] + _raise(1)]
    assert _raise(2) in sources[7] and "Why it works" not in "".join(sources)
    assert all(cell.outputs == [] and cell.execution_count is None for cell in notebook.cells if "outputs" in cell)
    assert generate(chapter) == (chapter / EXERCISES).read_text() and not write_exercises(chapter)


def _raise(number: int) -> str:
    return f'    raise NotImplementedError("exercise 98.{number}")'


@pytest.mark.parametrize(
    ("file", "before", "after", "complaint"),
    [
        # a solution that is wrong, and one that no longer is what shared/ runs
        (f"ch98_paper/{SOLUTIONS}", "(x, 2.0)", "(x, 3.0)", "the solution fails: this is not twice the input"),
        ("paper/numbers.py", "return factor * x", "return x * factor", "is not the code of paper.numbers.double"),
        ("paper/numbers.py", "def add_one(x):", "def add_one(x, y=0):", "is not the code of paper.numbers.add_one"),
        # an exercise that passes untouched, for its stub returns before it raises
        (f"ch98_paper/{SOLUTIONS}", "# BEGIN SOLUTION\\n", "if True:\\n        return x + x\\n    # BEGIN SOLUTION\\n",
         "the untouched stub is `passed`"),
        # a wrong answer with the wrong diagnosis, one that passes, and too few
        (WRONG_FILE, "return x * x", "return x + 1", "2 should get `this is the square`"),
        (WRONG_FILE, "return x - OFFSET", "return x + 1", "but gets `passed`"),
        (WRONG_FILE, '"this is the square"', '"twice"', "2 should get `twice`, but gets"),
        (WRONG_FILE, '        ("def double(x):\\n    return x", "nothing was doubled"),', "", "list three"),
        # checks and exercises that do not meet
        ("shared/course/checks/ch98.py", '"98.2"', '"98.3"', "98.2: an exercise without a check"),
        # a solution's line that shows above the solution as well
        (f"ch98_paper/{SOLUTIONS}", "Write `add_one`.", "return x + OFFSET  # broadcasts over every axis",
         "leaves its solution's line"),
    ],
)  # fmt: skip
def test_each_fault_is_found(chapter, file, before, after, complaint):
    path = chapter.parent / file
    change(path, before, after)
    load_checks.cache_clear()
    write_exercises(chapter)
    found = complaints(chapter, chapter.parent, chapter.parent / "scratch")
    assert any(complaint in one for one in found), found


@pytest.mark.parametrize(
    ("cells", "complaint"),
    [
        ([exercise_cell(1, DOUBLE, "double", "a.b"), exercise_cell(1, ADD_ONE, "add_one", "a.c")], "two cells say"),
        ([exercise_cell(1, DOUBLE, "double", "a.b", chapter=97)], "'97.1' does not fit ch98_x"),
        ([exercise_cell(1, DOUBLE.replace("END", "FIN"), "double", "a.b")], "BEGIN SOLUTION` without"),
        ([exercise_cell(1, "# BEGIN SOLUTION\ndef f(): pass\n# END SOLUTION", "f", "a.b")], "outside a function"),
        ([exercise_cell(1, "def f(): pass", "f", "a.b")], "exercise 98.1 has no `# BEGIN SOLUTION`"),
        ([code(DOUBLE)], 'has no metadata key "exercise"'),
        ([code(DOUBLE, exercise={"id": "98.1"})], "missing or unknown: difficulty, function"),
    ],
)
def test_malformed_exercises_are_named(tmp_path, cells, complaint):
    save(tmp_path / "ch98_x" / SOLUTIONS, *cells)
    with pytest.raises(CourseError, match=complaint):
        generate(tmp_path / "ch98_x")


def git(root: Path, *arguments: str) -> None:
    author = ["-c", "user.name=A Student", "-c", "user.email=student@example.org"]
    subprocess.run(["git", *author, *arguments], cwd=root, check=True, capture_output=True)


def test_a_stale_file_is_found_but_a_learners_own_work_never_counts(chapter):
    assert stale(chapter) is None  # no repository: the file itself counts
    answer(chapter, 2, "return x + 1")
    assert "is not what solutions.ipynb generates" in stale(chapter)
    write_exercises(chapter)
    git(chapter.parent, "init")
    git(chapter.parent, "add", ".")
    answer(chapter, 2, "return x + 1")
    assert stale(chapter) is None  # the index has it
    git(chapter.parent, "commit", "-m", "the course")
    answer(chapter, 1, "return 2 * x")
    assert stale(chapter) is None
    git(chapter.parent, "commit", "-am", "my answers")
    assert stale(chapter) is None  # the commit of the solutions has it
    change(chapter / SOLUTIONS, "Write `add_one`.", "Now write `add_one`.")
    assert "ch98_paper/exercises.ipynb is not what" in stale(chapter)
    git(chapter.parent, "commit", "-am", "solutions alone")
    assert "ch98_paper/exercises.ipynb is not what" in stale(chapter)
