"""Judging notebooks from their files, without a kernel.

A learner's code may hang or crash, so it runs in a process of its own, with a time limit for each exercise. This file
is both sides: `judge_all` starts that process and reads its answers; `python -m shared.course.judging` is it.
"""

import ast
import json
import linecache
import os
import queue
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import nbformat

from shared.course.exercises import NOT_DONE, WRONG, Exercise, all_exercises, exercise_cells, generate
from shared.course.notebooks import EXERCISES, ROOT, CodeCell, chapters, code_cells, statement_lines
from shared.errors import CourseError

SECONDS_EACH = 20.0  # for one exercise
SECONDS_TO_START = 180.0  # for importing torch from a slow disk
READY = b"ready\n"


@dataclass(frozen=True)
class Judged:
    """An exercise of a chapter and what its check said."""

    chapter: Path
    exercise: Exercise
    status: str  # as in Verdict
    message: str


# ---- taking a function out of a notebook


def learner_function(path: Path, exercise: Exercise) -> Any:
    """The learner's function for an exercise, without running the notebook.

    Executed are, in order: the imports, functions, classes and constants (names for literals) of all cells, and the
    assignments of exercise cells, up to the cell of the next exercise. So a second attempt below the first counts,
    and helpers may stand anywhere above. CourseError, in one line, when the function cannot be had.
    """
    namespace: dict[str, Any] = {"__name__": "__main__"}
    reached = False
    for cell in code_cells(path):
        own = dict(cell.metadata.get("exercise", {})).get("id")
        if reached and own not in (None, exercise.id):
            break
        reached = reached or own == exercise.id
        _define(cell, namespace, everything=own is not None, strict=own == exercise.id)
    if not reached:
        raise CourseError(f"its cell is missing from {path.name}; bring it back with `git checkout -p {path.name}`")
    if exercise.function not in namespace:
        raise CourseError(f"the cell defines no `{exercise.function}`; keep the name that the exercise gives")
    return namespace[exercise.function]


def _define(cell: CodeCell, namespace: dict[str, Any], everything: bool, strict: bool) -> None:
    """Execute a cell's definitions. Failures count in the exercise's own cell alone (`strict`)."""
    source = "\n".join(statement_lines(cell.source)) + "\n"
    name = f"{cell.path.parent.name}/{cell.path.name} In [{cell.number}]"
    linecache.cache[name] = (len(source), None, source.splitlines(keepends=True), name)
    try:
        body = [node for node in ast.parse(source).body if _is_wanted(node, everything)]
    except SyntaxError as error:
        if strict:
            raise CourseError(f"line {error.lineno} of the cell is not Python: {error.msg}") from error
        return
    for node in body:
        try:
            exec(compile(ast.Module([node], []), name, "exec"), namespace)
        except Exception as error:
            if strict:
                raise CourseError(f"line {node.lineno} of the cell fails: {type(error).__name__}: {error}") from error


def _is_wanted(node: ast.stmt, everything: bool) -> bool:
    if isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
        return everything or _is_literal(node.value)
    return isinstance(node, ast.Import | ast.ImportFrom | ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)


def _is_literal(node: ast.expr) -> bool:
    try:
        ast.literal_eval(node)
    except (ValueError, TypeError):
        return False
    return True


def judge_one(chapter: Path, exercise: Exercise, notebook: str, root: Path) -> tuple[str, str]:
    """Status and message of one exercise, in this process."""
    from shared.course.checks import find_check, judge  # here, for it imports torch

    try:
        verdict = judge(find_check(exercise.id, root), learner_function(chapter / notebook, exercise))
        return verdict.status, verdict.message
    except CourseError as error:
        return WRONG, " ".join(str(error).split())


# ---- the side that asks


def judge_all(root: Path = ROOT, notebook: str = EXERCISES, seconds: float = SECONDS_EACH) -> list[Judged]:
    """Judge every exercise of the course, in order, from the notebooks of that name.

    `seconds` is the limit for one exercise; one that exceeds it, or crashes Python, gets a line that says so.
    """
    asked: list[tuple[Path, Exercise]] = []
    said: dict[str, tuple[str, str]] = {}
    for chapter in chapters(root):
        exercises = [exercise for exercise, _ in exercise_cells(chapter)]
        if not (chapter / notebook).exists():
            missing = f"{chapter.name}/{notebook} is missing; bring it back with git"
            said.update({exercise.id: (NOT_DONE, missing) for exercise in exercises})
        elif untouched(chapter, notebook):
            said.update({exercise.id: (NOT_DONE, NOT_DONE) for exercise in exercises})
        asked += [(chapter, exercise) for exercise in exercises]
    waiting = [(chapter, exercise) for chapter, exercise in asked if exercise.id not in said]
    while waiting:
        for id, status, message in ask_worker(waiting, root, notebook, seconds):
            said[id] = (status, message)
        waiting = [(chapter, exercise) for chapter, exercise in waiting if exercise.id not in said]
    return [Judged(chapter, exercise, *said[exercise.id]) for chapter, exercise in asked]


def untouched(chapter: Path, notebook: str) -> bool:
    """Whether a notebook's code still reads as generated; then nothing needs to run."""
    generated = nbformat.reads(generate(chapter), as_version=4)
    now, before = code_cells(chapter / notebook), code_cells(chapter / notebook, generated)
    return [cell.source for cell in now] == [cell.source for cell in before]


def ask_worker(
    tasks: Sequence[tuple[Path, Exercise]], root: Path, notebook: str, seconds: float
) -> Iterator[tuple[str, str, str]]:
    """Judge the tasks in one process: (id, status, message) of each, up to the first that hangs or crashes it."""
    with tempfile.TemporaryFile() as errors:
        command = [sys.executable, "-m", "shared.course.judging", str(root), notebook]
        command += [exercise.id for _, exercise in tasks]
        worker = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors)
        lines: queue.Queue[bytes] = queue.Queue()
        reader = threading.Thread(target=_collect, args=(worker.stdout, lines), daemon=True)
        reader.start()
        try:
            if _answer(lines, SECONDS_TO_START) != READY:
                errors.seek(0)
                reason = errors.read().decode("utf-8", "replace").strip().splitlines()[-1:] or ["no answer"]
                raise CourseError(f"the judging process did not start: {reason[0]}; try `make setup`")
            for _, exercise in tasks:
                answer = _answer(lines, seconds)
                if answer is None:
                    yield exercise.id, WRONG, f"it runs longer than {seconds:g} seconds: does a loop never end?"
                    return
                if not answer:
                    yield exercise.id, WRONG, f"it crashes Python (exit code {worker.wait()})"
                    return
                yield (exercise.id, *json.loads(answer))
        finally:
            worker.kill()
            worker.wait()
            reader.join(timeout=5)


def _collect(pipe: IO[bytes], lines: queue.Queue) -> None:
    with pipe:
        for line in pipe:
            lines.put(line)
    lines.put(b"")  # the process has ended


def _answer(lines: queue.Queue, seconds: float) -> bytes | None:
    """The next line; empty when the process has ended, None when the time is up."""
    try:
        return lines.get(timeout=seconds)
    except queue.Empty:
        return None


# ---- the side that answers


def work(root: Path, notebook: str, ids: Sequence[str]) -> None:
    """Judge exercises one by one and write a line about each; what learners print goes nowhere."""
    import shared.course.checks  # noqa: F401 - torch is loaded before the clock of the first exercise starts

    answers = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    answers.write(READY)
    tasks = {exercise.id: (chapter, exercise) for chapter, exercise in all_exercises(root)}
    for id in ids:
        answers.write(json.dumps(judge_one(*tasks[id], notebook, root)).encode() + b"\n")


if __name__ == "__main__":
    work(Path(sys.argv[1]), sys.argv[2], sys.argv[3:])
