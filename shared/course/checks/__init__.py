"""What judges a learner's function: `check("3.1", causal_mask)` prints one line and, asked for, a hint.

Each chapter's checks stand in one file here, ch03.py for chapter 3. A check tests properties on random sizes and
names the mistake it finds; it holds no solution to compare with:

    @exercise("3.1", hints=("...", "...", "..."))
    def causal_mask(function):
        queries, keys = sorted(distinct_sizes(2))
        mask = function(queries, keys)
        require_shape(mask, (queries, keys), "the mask")
        require(mask[0, -1] == 0, "row 0 sees the last key: a token must not see the future")
"""

import functools
import importlib.util
import linecache
import random
import re
import reprlib
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from shared.course.exercises import NOT_DONE, PASSED, WRONG
from shared.course.notebooks import ROOT
from shared.errors import CourseError

LONGEST_MESSAGE = 300  # characters
SHAPE_WORDS = re.compile(r"shape|size of tensor|sizes of tensors|dimension|broadcast|must match|view size")


class WrongAnswer(Exception):
    """A check found a mistake; the message is the diagnosis."""


@dataclass(frozen=True)
class Verdict:
    """What a check says about a function. `message` is one line: the status, or the diagnosis."""

    status: str  # PASSED, NOT_DONE or WRONG
    message: str

    @property
    def passed(self) -> bool:
        return self.status == PASSED


@dataclass(frozen=True)
class Check:
    """A registered check: it calls the learner's function and raises WrongAnswer when a property does not hold."""

    id: str
    run: Callable[[Callable], object]
    hints: tuple[str, ...]


def exercise(id: str, hints: Sequence[str]) -> Callable[[Callable[[Callable], object]], Check]:
    """Register a function as the check of exercise `id`, with three hints, from a nudge to almost the answer."""
    if len(hints) != 3 or not all(hint.strip() for hint in hints):
        raise CourseError(f"exercise {id}: {len(hints)} hints; give three, each saying more than the one before")
    return lambda run: Check(id, run, tuple(hints))


# ---- what checks are written with


def require(condition: Any, diagnosis: str) -> None:
    """Raise the diagnosis unless the condition holds. It names the mistake, in one line, as one would to a person."""
    if not bool(condition):
        raise WrongAnswer(diagnosis)


def require_shape(value: Any, shape: Sequence[int], name: str = "the result") -> None:
    """`value` must be a tensor or array of that shape, without NaN."""
    if value is None:
        raise WrongAnswer(f"{name} is None: is a `return` missing?")
    if not hasattr(value, "shape"):
        raise WrongAnswer(f"{name} is a {type(value).__name__}, not a tensor of shape {_shape(shape)}")
    require(tuple(value.shape) == tuple(shape), f"{name} has shape {_shape(value.shape)}, not {_shape(shape)}")
    require(not torch.isnan(torch.as_tensor(value)).any(), f"{name} holds NaN (not a number): 0/0 or inf - inf?")


def require_close(value: Any, expected: Any, diagnosis: str, tolerance: float = 1e-5) -> None:
    """Two tensors or numbers must be equal within an absolute and relative tolerance."""
    ours, theirs = torch.as_tensor(value).double(), torch.as_tensor(expected).double()
    require(ours.shape == theirs.shape and torch.allclose(ours, theirs, rtol=tolerance, atol=tolerance), diagnosis)


def distinct_sizes(count: int, low: int = 2, high: int = 9) -> list[int]:
    """Random sizes that all differ, so that axes put in the wrong order cannot pass unnoticed."""
    return random.sample(range(low, high + 1), count)


def _shape(shape: Sequence[int]) -> str:
    return "(" + ", ".join(map(str, shape)) + ("," if len(shape) == 1 else "") + ")"


# ---- judging


def judge(check: Check, function: Any) -> Verdict:
    """Run a check on a learner's function. Whatever the function raises becomes a diagnosis of one line."""
    if not callable(function):
        kind = type(function).__name__
        return Verdict(WRONG, f"this is no function but of type {kind}: hand over the function itself, not a call")
    calls = _Calls()
    try:
        with fixed_randomness(check.id):
            check.run(calls.watching(function))
    except WrongAnswer as wrong:
        return Verdict(WRONG, _one_line(str(wrong)))
    except NotImplementedError as error:
        return _unfinished(check.id, str(error)) or Verdict(WRONG, _raised(error, function, calls))
    except (Exception, SystemExit) as error:
        return Verdict(WRONG, _raised(error, function, calls))
    return Verdict(PASSED, PASSED)


def _unfinished(id: str, message: str) -> Verdict | None:
    found = re.fullmatch(r"exercise (\d+\.\d+)", message)
    if not found:
        return None
    return Verdict(NOT_DONE, NOT_DONE if found[1] == id else f"{NOT_DONE}: it needs exercise {found[1]} first")


@contextmanager
def fixed_randomness(id: str) -> Iterator[None]:
    """Inside, every generator starts from a seed that depends on the exercise; outside, nothing has changed."""
    seed = int.from_bytes(id.encode(), "big") % 2**31
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)


class _Calls:
    """Remembers the latest call of the learner's function, for the diagnosis."""

    def __init__(self) -> None:
        self.latest: str | None = None
        self.returned_none = False

    def watching(self, function: Callable) -> Callable:
        if isinstance(function, type):
            return function  # a class stays itself: checks may look at it or inherit from it

        @functools.wraps(function)
        def watched(*args, **kwargs):
            given = [_describe(value) for value in args] + [f"{key}={_describe(kwargs[key])}" for key in kwargs]
            self.latest = f"{function.__name__}({', '.join(given)})"
            result = function(*args, **kwargs)
            self.returned_none = result is None
            return result

        return watched


def _describe(value: Any) -> str:
    return f"<{_shape(value.shape)}>" if hasattr(value, "shape") else reprlib.repr(value)


def _raised(error: BaseException, function: Any, calls: _Calls) -> str:
    """One line about an exception: what was called, which of the learner's lines failed, and how."""
    reason = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no message'}"
    files = _files_of(function)
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename in files]
    call = calls.latest or getattr(function, "__name__", "the function")
    if not frames:
        if calls.returned_none:
            return f"{call}: it returned None: is a `return` missing?"
        return _one_line(f"{call}: what it returned cannot be used: {reason}")
    code = linecache.getline(frames[-1].filename, frames[-1].lineno or 0).strip()
    what = "the shapes do not fit" if SHAPE_WORDS.search(reason) else "it failed"
    return _one_line(f"{call}: {what} at `{code}` ({reason})")


def _files_of(function: Any) -> set[str]:
    """The files (cells, in a notebook) in which a function, or the methods of a class, were written."""
    functions = vars(function).values() if isinstance(function, type) else [function]
    return {item.__code__.co_filename for item in functions if hasattr(item, "__code__")}


def _one_line(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= LONGEST_MESSAGE else text[: LONGEST_MESSAGE - 3] + "..."


# ---- finding a check


@lru_cache
def load_checks(chapter: int, root: Path = ROOT) -> dict[str, Check]:
    """The checks of a chapter by exercise id, from `shared/course/checks/chNN.py` under the root; may be empty."""
    path = root / "shared" / "course" / "checks" / f"ch{chapter:02d}.py"
    if not path.exists():
        return {}
    name = f"{__name__}.{path.stem}" + ("" if root == ROOT else f"_{abs(hash(root))}")
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise CourseError(f"{path}: cannot be loaded; restore it from git")
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found = [value for value in vars(module).values() if isinstance(value, Check)]
    checks = {check.id: check for check in found}
    if len(checks) < len(found) or any(not id.startswith(f"{chapter}.") for id in checks):
        raise CourseError(
            f"{path}: the ids of its checks are {', '.join(c.id for c in found)}; number them {chapter}.1, ..."
        )
    return checks


def find_check(id: str, root: Path = ROOT) -> Check:
    """The check of an exercise; CourseError for an id that does not exist."""
    chapter = id.split(".")[0]
    checks = load_checks(int(chapter), root) if chapter.isdecimal() else {}
    if id not in checks:
        known = f"chapter {chapter} has {', '.join(checks)}" if checks else "no chapter has that number"
        raise CourseError(f"there is no exercise {id!r}: {known}")
    return checks[id]


def check(id: str, function: Callable, hint: int = 0) -> None:
    """Judge your function for exercise `id` and print what came out; `hint=1` to `3` adds a hint."""
    found = find_check(id)
    if hint not in range(4):
        raise CourseError(f"hint={hint!r}: hints go from 1 to 3")
    print(f"exercise {id}: {judge(found, function).message}")
    if hint:
        print(f"hint {hint} of 3: {found.hints[hint - 1]}")
