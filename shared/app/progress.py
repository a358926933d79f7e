"""Progress for people: bars that appear only where something takes long."""

import sys
from collections.abc import Callable, Iterable
from typing import Any

from tqdm import tqdm

Say = Callable[[str], None]  # shows one line


def watch(loop: Iterable[Any], name: str, total: int | None = None) -> Iterable[Any]:
    """The same loop with a bar and the time left, once it has taken two seconds."""
    interval = 0.2 if sys.stderr.isatty() else 30
    return tqdm(loop, desc=name, total=total, delay=2, leave=False, mininterval=interval)
