"""A small course in a temporary folder, for the tests of the course's machinery."""

import json
import sys
from pathlib import Path

from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from shared.course.checks import load_checks
from shared.course.notebooks import write

OPENING = "# A lesson\n\n12 minutes to read, 20 seconds to run."


def code(source: str, **metadata) -> NotebookNode:
    return new_code_cell(source, metadata=metadata)


def save(path: Path, *cells: NotebookNode, opening: str = OPENING) -> Path:
    """Write a notebook of these cells below an opening cell; ids by position, so that bytes repeat."""
    notebook = new_notebook(cells=[new_markdown_cell(opening), *cells])
    for position, cell in enumerate(notebook.cells):
        cell["id"] = f"c{position}"
    write(notebook, path)
    return path


def change(path: Path, before: str, after: str) -> None:
    """Edit a file as a person would: one occurrence of a text becomes another."""
    text = path.read_text(encoding="utf-8")
    assert text.count(before) >= 1, f"{before!r} is not in {path}"
    path.write_text(text.replace(before, after, 1), encoding="utf-8")


# ---- a chapter with exercises, and their checks


def exercise_cell(number: int, source: str, function: str, replaces: str, chapter: int = 98) -> NotebookNode:
    about = {
        "id": f"{chapter}.{number}",
        "title": f"Write {function}",
        "difficulty": 2,
        "importance": 4,
        "minutes": 10,
        "objective": f"write {function} yourself",
        "function": function,
        "replaces": replaces,
    }
    return code(source, exercise=about)


DOUBLE = """import torch


def double(x):
    \"\"\"Twice x.\"\"\"
    # BEGIN SOLUTION
    factor = torch.full_like(x, 2.0)
    return factor * x
    # END SOLUTION
"""
ADD_ONE = """OFFSET = 1.0


def add_one(x):
    # BEGIN SOLUTION
    return x + OFFSET  # broadcasts over every axis
    # END SOLUTION
"""
PACKAGE = {
    "__init__.py": "",
    "numbers.py": '''"""Numbers."""
import torch

OFFSET = 1.0


def double(x):
    factor = torch.full_like(x, 2.0)
    return factor * x


def add_one(x):
    return x + OFFSET
''',
    "uses.py": '''"""Holds on to `double` in every way in which a module can."""
from paper.numbers import add_one, double

TABLE = {"double": double}


def by_default(x, function=double):
    return function(x)


def by_keyword(x, *, function=double):
    return add_one(function(x))
''',
}
CHECKS = """
import torch
from shared.course.checks import distinct_sizes, exercise, require, require_close, require_shape


@exercise("98.1", hints=("read the docstring", "multiply", "x * 2"))
def double(function):
    x = torch.randn(distinct_sizes(2))
    result = function(x)
    require_shape(result, x.shape)
    require(not torch.equal(result, x), "nothing was doubled")
    require(not torch.equal(result, x**2), "this is the square")
    require_close(result, x + x, "this is not twice the input")


@exercise("98.2", hints=("look at OFFSET", "add", "x + OFFSET"))
def add_one(function):
    x = torch.randn(distinct_sizes(2))
    require_close(function(x), x + 1, "the result is not one more")
"""
WRONG_ANSWERS = """
WRONG_ANSWERS = {
    "98.1": [
        ("def double(x):\\n    return x", "nothing was doubled"),
        ("def double(x):\\n    return x * x", "this is the square"),
        ("def double(x):\\n    return x.T", "has shape"),
    ],
    "98.2": [
        ("def add_one(x):\\n    return x - OFFSET", "not one more"),
        ("def add_one(x):\\n    return x[0, 0, 0] + 1", "the shapes do not fit"),
        ("def add_one(x):\\n    print(x)", "is a `return` missing"),
    ],
}
"""


def course(root: Path) -> Path:
    """A course of one chapter with two exercises, on a package `paper` that stands for shared; returns the chapter."""
    files = {f"paper/{name}": text for name, text in PACKAGE.items()}
    files |= {"shared/course/checks/ch98.py": CHECKS, "tests/wrong_answers/ch98.py": WRONG_ANSWERS}
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    chapter = root / "ch98_paper"
    save(chapter / "01_doubling.ipynb", code("print('doubling')"))
    save(
        chapter / "solutions.ipynb",
        new_markdown_cell("Write `double`."),
        exercise_cell(1, DOUBLE, "double", "paper.numbers.double"),
        new_markdown_cell("Why it works: a tensor of twos.", metadata={"solution_only": True}),
        new_markdown_cell("Write `add_one`."),
        exercise_cell(2, ADD_ONE, "add_one", "paper.numbers.add_one"),
        code("check('98.2', add_one)"),
    )
    return chapter


def use_paper(monkeypatch, root: Path) -> None:
    """Let `paper` be imported from a course under `root`, in this process and in those that it starts."""
    load_checks.cache_clear()
    for name in [name for name in sys.modules if name.split(".")[0] == "paper"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(root)
    monkeypatch.setenv("PYTHONPATH", str(root))


def answer(chapter: Path, exercise: int, body: str) -> None:
    """Do what a learner does in exercises.ipynb: put a body in place of a stub's `raise`."""
    stub = json.dumps(f'    raise NotImplementedError("exercise 98.{exercise}")')
    path = chapter / "exercises.ipynb"
    change(path, stub, json.dumps("    " + body.replace("\n", "\n    ")))
