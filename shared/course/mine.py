"""The learner's own functions in the place of ours: `make run MINE=1`."""

import importlib
import inspect
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from shared.course.exercises import PASSED, WRONG, resolve
from shared.course.judging import SECONDS_EACH, judge_all, learner_function
from shared.course.notebooks import EXERCISES, ROOT


@dataclass(frozen=True)
class Mine:
    """What the learner has rebuilt: functions that pass by the name they replace, and the wrong ones' diagnoses."""

    passed: dict[str, Callable]
    refused: list[tuple[str, str]]  # exercise id, diagnosis
    total: int


def load_mine(
    chapters: Sequence[Path | str] | None = None,
    *,
    root: Path = ROOT,
    notebook: str = EXERCISES,
    seconds: float = SECONDS_EACH,
) -> Mine:
    """Judge the learner's notebooks (of the chapters given, by default of all) and load the functions that pass."""
    wanted = None if chapters is None else {Path(chapter).name for chapter in chapters}
    judged = [item for item in judge_all(root, notebook, seconds) if wanted is None or item.chapter.name in wanted]
    return Mine(
        passed={
            item.exercise.replaces: learner_function(item.chapter / notebook, item.exercise)
            for item in judged
            if item.status == PASSED
        },
        refused=[(item.exercise.id, item.message) for item in judged if item.status == WRONG],
        total=len(judged),
    )


def install(mine: Mine, package: str = "shared", say: Callable[[str], object] = print) -> None:
    """Put each passed function in the place of its namesake wherever the package has hold of it, and say so.

    Besides the module that defines it, that is every module that imported it, every table (a dict of a module) that
    lists it, and every default argument that names it. Modules imported later find it in the defining module.
    """
    for target, function in mine.passed.items():
        owner, name = resolve(target)
        ours = inspect.getattr_static(owner, name)
        setattr(owner, name, function)
        for module in loaded_modules(package):
            replace_everywhere(module, ours, function)
    names = f" ({', '.join(mine.passed)})" if mine.passed else ""
    say(f"yours: {len(mine.passed)} of {mine.total}{names}")
    for id, diagnosis in mine.refused:
        say(f"refused: exercise {id}: {diagnosis}")


def loaded_modules(package: str) -> list[ModuleType]:
    """The modules of a package that have been imported so far."""
    importlib.import_module(package)
    return [module for name, module in sys.modules.items() if name == package or name.startswith(f"{package}.")]


def replace_everywhere(module: ModuleType, old: Any, new: Any) -> None:
    """Replace an object in a module's globals, in its dicts, and in its functions' default arguments."""
    for name, value in list(vars(module).items()):
        if value is old:
            setattr(module, name, new)
        elif isinstance(value, dict) and not name.startswith("__"):
            value.update({key: new for key, held in value.items() if held is old})
    for function in functions_of(module):
        defaults, named = function.__defaults__ or (), function.__kwdefaults__ or {}
        if any(value is old for value in defaults):
            function.__defaults__ = tuple(new if value is old else value for value in defaults)
        named.update({key: new for key, value in named.items() if value is old})


def functions_of(module: ModuleType) -> Iterator[Any]:
    """The functions that a module defines, and the methods of its classes."""
    for value in vars(module).values():
        if getattr(value, "__module__", None) != module.__name__:
            continue
        for item in vars(value).values() if isinstance(value, type) else [value]:
            if inspect.isfunction(item):
                yield item
