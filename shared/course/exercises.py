"""Exercises: what solutions.ipynb says about them, and exercises.ipynb, which is generated from it.

A code cell of solutions.ipynb with the metadata key "exercise" holds one function. Its body stands between the lines
`# BEGIN SOLUTION` and `# END SOLUTION`; the generated notebook has `raise NotImplementedError("exercise 3.1")` there.
"""

import ast
import copy
import importlib
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from types import ModuleType
from typing import Any

import nbformat
from nbformat import NotebookNode
from nbformat.v4 import new_markdown_cell

from shared.course.notebooks import (
    EXERCISES,
    ROOT,
    SOLUTIONS,
    CodeCell,
    canonical,
    chapter_number,
    chapters,
    code_cells,
    read,
    write_text,
)
from shared.errors import CourseError

PASSED, NOT_DONE, WRONG = "passed", "not done yet", "wrong"  # what can be said of a learner's function
BEGIN, END = "# BEGIN SOLUTION", "# END SOLUTION"
GENERATED = (
    "This notebook is made from `solutions.ipynb`. Write your code in place of each `raise NotImplementedError(...)`, "
    "run the cell, and let the `check` below it judge. `check(..., hint=1)` gives a hint, up to `hint=3`."
)


@dataclass(frozen=True)
class Exercise:
    """What a solution cell's metadata says. `function` is defined in the cell and takes the place of `replaces`."""

    id: str  # chapter.number
    title: str
    difficulty: int  # 1 to 5
    importance: int  # 1 to 5
    minutes: int
    objective: str  # completes "afterwards you can ..."
    function: str
    replaces: str  # dotted name in shared


# ---- reading solutions.ipynb


def exercise_of(cell: CodeCell) -> Exercise:
    """The exercise that a cell holds; CourseError when its metadata are incomplete or out of range."""
    given = dict(cell.metadata["exercise"])
    expected: dict[str, Any] = {field.name: field.type for field in fields(Exercise)}
    if set(given) != set(expected):
        wrong = ", ".join(sorted(set(given) ^ set(expected)))
        raise CourseError(f"{cell}: an exercise's metadata keys are {', '.join(expected)}; missing or unknown: {wrong}")
    for name, kind in expected.items():
        if not isinstance(given[name], kind) or not given[name]:
            raise CourseError(f"{cell}: the exercise's {name} is {given[name]!r}; give a {kind.__name__}")
    exercise = Exercise(**given)
    if not re.fullmatch(rf"{chapter_number(cell.path.parent)}\.[1-9]\d*", exercise.id):
        raise CourseError(f"{cell}: exercise id {exercise.id!r} does not fit {cell.path.parent.name}; use N.1, ...")
    if not (1 <= exercise.difficulty <= 5 and 1 <= exercise.importance <= 5 and exercise.minutes > 0):
        raise CourseError(f"{cell}: difficulty and importance are from 1 to 5, minutes above 0")
    return exercise


def exercise_cells(chapter: Path, name: str = SOLUTIONS) -> list[tuple[Exercise, CodeCell]]:
    """The exercises of a chapter and their cells in the notebook `name`, in order; none when there is no notebook."""
    path = chapter / name
    if not path.exists():
        return []
    found = [(exercise_of(cell), cell) for cell in code_cells(path) if "exercise" in cell.metadata]
    ids = [exercise.id for exercise, _ in found]
    for id in ids:
        if ids.count(id) > 1:
            raise CourseError(f"{path}: two cells say that they are exercise {id}; number them anew")
    return found


def all_exercises(root: Path = ROOT) -> list[tuple[Path, Exercise]]:
    """Every exercise of the course with its chapter, in order."""
    return [(chapter, exercise) for chapter in chapters(root) for exercise, _ in exercise_cells(chapter)]


# ---- generating exercises.ipynb


def solution_lines(source: str) -> list[str]:
    """The lines between the markers."""
    return [line for line, inside in _marked(source, "source") if inside]


def _marked(source: str, where: str) -> Iterator[tuple[str, bool]]:
    """Each line of a cell, and whether it belongs to the solution; the markers do."""
    inside = False
    for line in source.splitlines():
        marker = line.strip()
        if (marker == BEGIN and inside) or (marker == END and not inside):
            raise CourseError(f"{where}: `{marker}` without its partner; the markers come in pairs")
        if marker == BEGIN and not line[0].isspace():
            raise CourseError(f"{where}: `{BEGIN}` stands outside a function; only bodies are left to the learner")
        inside = inside or marker == BEGIN
        yield line, inside
        inside = inside and marker != END
    if inside:
        raise CourseError(f"{where}: `{BEGIN}` without `{END}`")


def stub(cell: CodeCell, exercise: Exercise) -> str:
    """The cell as the learner gets it."""
    lines = []
    for line, inside in _marked(cell.source, str(cell)):
        if not inside:
            lines.append(line)
        elif line.strip() == BEGIN:
            indent = line[: len(line) - len(line.lstrip())]
            lines.append(f'{indent}raise NotImplementedError("exercise {exercise.id}")')
    if len(lines) == len(cell.source.splitlines()):
        raise CourseError(f"{cell}: exercise {exercise.id} has no `{BEGIN}` ... `{END}`")
    return "\n".join(lines)


def heading(exercise: Exercise) -> str:
    """What stands above an exercise: what it is for, and what it costs."""
    return (
        f"### Exercise {exercise.id}: {exercise.title}\n\n"
        f"{_dots(exercise.difficulty)} difficulty · {_dots(exercise.importance)} importance · "
        f"about {exercise.minutes} minutes · afterwards you can {exercise.objective.rstrip('.')}."
    )


def _dots(count: int) -> str:
    return "●" * count + "○" * (5 - count)


def generate(chapter: Path) -> str:
    """The text of exercises.ipynb: stubs for solutions, no outputs, nothing that only solutions.ipynb shows."""
    path = chapter / SOLUTIONS
    notebook = read(path)
    exercises = {cell.node["id"]: (exercise, cell) for exercise, cell in exercise_cells(chapter)}
    cells: list[NotebookNode] = []
    for node in notebook.cells:
        if node.metadata.get("solution_only"):
            continue
        node = copy.deepcopy(node)
        if node.cell_type == "code":
            node.outputs, node.execution_count = [], None
            if node["id"] in exercises:
                exercise, cell = exercises[node["id"]]
                node.source = stub(cell, exercise)
                above = len(cells) - 1 if cells and cells[-1].cell_type == "markdown" else len(cells)
                title = new_markdown_cell(heading(exercise), id=f"exercise-{exercise.id.replace('.', '-')}")
                cells.insert(above, title)
            elif BEGIN in node.source or END in node.source:
                raise CourseError(f'{path}: a cell with `{BEGIN}` has no metadata key "exercise"')
        cells.append(node)
    cells.insert(1, new_markdown_cell(GENERATED, id="about-this-notebook"))
    notebook.cells = cells
    return canonical(notebook)


def write_exercises(chapter: Path) -> bool:
    """Generate a chapter's exercises.ipynb; True when the file changed."""
    text, path = generate(chapter), chapter / EXERCISES
    if path.exists() and path.read_text(encoding="utf-8") == text:
        return False
    write_text(path, text)
    return True


# ---- what must hold


def stale(chapter: Path) -> str | None:
    """A complaint when exercises.ipynb is not what solutions.ipynb generates, or None.

    Learners write into that file, so the one in their working tree does not count while git knows a right one: the
    committed file, the one in the index, or the one committed together with the present solutions.
    """
    path = chapter / EXERCISES
    text = generate(chapter)
    if path.exists() and path.read_text(encoding="utf-8") == text:
        return None
    name = f"./{EXERCISES}"
    solved = _git(chapter, "log", "-1", "--format=%H", "--", SOLUTIONS)
    versions = [f"HEAD:{name}", f":{name}"] + ([f"{solved.strip()}:{name}"] if solved and solved.strip() else [])
    if any(_git(chapter, "show", version) == text for version in versions):
        return None
    return (
        f"{chapter.name}/{EXERCISES} is not what {SOLUTIONS} generates; "
        f"run `python -m shared.course exercises {chapter.name}` and commit both"
    )


def _git(folder: Path, *arguments: str) -> str | None:
    """What a git command prints, or None where there is no git, no repository or no such object."""
    try:
        done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, check=False)
    except OSError:
        return None
    return done.stdout.decode("utf-8", "replace") if done.returncode == 0 else None


def surviving_lines(chapter: Path) -> list[str]:
    """Complaints about lines of a solution that the generated notebook still shows (lines of some length only)."""
    shown = {
        line.strip()
        for cell in nbformat.reads(generate(chapter), as_version=4).cells
        for line in cell.source.splitlines()
    }
    found = []
    for exercise, cell in exercise_cells(chapter):
        for line in solution_lines(cell.source):
            text = line.strip()
            if text in shown and (len(text) >= 20 or text in (BEGIN, END)):
                found.append(f"{cell}: exercise {exercise.id} leaves its solution's line in {EXERCISES}: {text}")
    return found


def resolve(target: str) -> tuple[ModuleType | type, str]:
    """The module or class that holds `shared.some.module.name`, and the name; CourseError when there is none."""
    parts = target.split(".")
    for cut in range(len(parts) - 1, 0, -1):
        try:
            owner: Any = importlib.import_module(".".join(parts[:cut]))
        except ModuleNotFoundError:
            continue
        for part in parts[cut:-1]:
            owner = getattr(owner, part, None)
        if hasattr(owner, parts[-1]):
            return owner, parts[-1]
        break
    raise CourseError(f"{target}: there is no such function; check the exercise's `replaces`")


def differs_from_shared(cell: CodeCell, exercise: Exercise) -> str | None:
    """A complaint when a solution is not the code that the course runs (docstring, comments apart), or None.

    The two are one piece of code under one name: a solution that drifts from shared/ would teach something else than
    what `make run` runs. Methods are compared by their arguments alone.
    """
    owner, name = resolve(exercise.replaces)
    if exercise.function != name:
        return f"{cell}: exercise {exercise.id} defines `{exercise.function}`, but replaces {exercise.replaces}"
    module = importlib.import_module(owner.__module__) if isinstance(owner, type) else owner
    theirs: ast.AST | None = ast.parse(Path(str(module.__file__)).read_text(encoding="utf-8"))
    for part in exercise.replaces.removeprefix(f"{module.__name__}.").split("."):
        theirs = _definition(theirs, part)
    ours = _definition(ast.parse(cell.source), name)
    if ours is None or theirs is None:
        where = exercise.replaces if ours else f"`{name}`"
        return f"{cell}: exercise {exercise.id}: {where} is not defined where it is said to be"
    if isinstance(owner, type):
        same = ast.dump(_arguments(ours)) == ast.dump(_arguments(theirs))
    else:
        same = ast.dump(_bare(ours)) == ast.dump(_bare(theirs))
    return None if same else f"{cell}: the solution of exercise {exercise.id} is not the code of {exercise.replaces}"


def _arguments(node: ast.AST) -> ast.AST:
    return getattr(node, "args", node)


def _definition(tree: ast.AST | None, name: str) -> ast.AST | None:
    """The function or class of that name in a module's or class's body."""
    found = [node for node in getattr(tree, "body", []) if getattr(node, "name", None) == name]
    return found[-1] if found else None


def _bare(node: ast.AST) -> ast.AST:
    """A copy of a definition without any docstring."""
    node = copy.deepcopy(node)
    for inner in ast.walk(node):
        body = getattr(inner, "body", None)
        if isinstance(inner, ast.FunctionDef | ast.ClassDef) and body and isinstance(body[0], ast.Expr):
            value = body[0].value
            if isinstance(value, ast.Constant) and isinstance(value.value, str):
                inner.body = body[1:] or [ast.Pass()]
    return node
