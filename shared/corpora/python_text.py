"""Two corpora that every CPython carries, so that real text needs no download.

python-docs  the language reference as `help()` prints it (the module `pydoc_data.topics`): English prose
python-code  the standard library's own sources, about 10 MB without tests
"""

from __future__ import annotations

import os
import platform
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from shared.corpora.base import Corpus, every_nth
from shared.errors import CourseError

# Tests, installed packages, and tables that a script wrote: none of them is code that a person would read.
LEFT_OUT = {
    "test",
    "tests",
    "idle_test",
    "site-packages",
    "dist-packages",
    "__pycache__",
    "encodings",
    "pydoc_data",
    "lib-dynload",
}
LONG_PARAGRAPH = 60  # characters; shorter paragraphs ("Note:", "See also:") may repeat


def load_python_docs() -> Corpus:
    """Return the language reference: a document a topic, every tenth topic for validation."""
    try:
        from pydoc_data.topics import topics
    except ImportError:
        raise CourseError(
            "python-docs: this Python came without pydoc_data.topics; use another corpus, such as python-code"
        ) from None
    train, val = every_nth(_without_repeats(topics), 10)
    source = f"the language reference of CPython {platform.python_version()} (pydoc_data.topics)"
    return Corpus("python-docs", source, train, val)


def _without_repeats(topics: dict[str, str]) -> list[str]:
    """Drop every paragraph that a longer topic has printed already: else validation text would stand in training.

    (`help("if")` is a section of `help("compound")`, and a third of all topics are such sections.)
    """
    seen: set[str] = set()
    kept: dict[str, str] = {}
    for name in sorted(topics, key=lambda name: (-len(topics[name]), name)):
        paragraphs = topics[name].strip("\n").split("\n\n")
        fresh = [text for text in paragraphs if len(text.strip()) < LONG_PARAGRAPH or text.strip() not in seen]
        seen.update(text.strip() for text in paragraphs)
        text = "\n\n".join(fresh) + "\n"
        if len(text) >= len(topics[name]) / 2:
            kept[name] = text
    return [kept[name] for name in sorted(kept)]


def load_python_code(root: Path | None = None) -> Corpus:
    """Return the standard library's sources: a document a file, every twentieth for validation, copies dropped."""
    root = root or Path(sysconfig.get_paths()["stdlib"])
    documents: dict[str, None] = {}  # a dict keeps the order of arrival, a set would not
    for path in _source_files(root):
        text = _source_text(path)
        if text.strip():
            documents[text] = None
    train, val = every_nth(list(documents), 20)
    if not val:
        raise CourseError(f"python-code: {root} holds no readable library sources; use another corpus, such as stories")
    return Corpus("python-code", f"the standard library of CPython {platform.python_version()}", train, val)


def _source_files(root: Path) -> Iterator[Path]:
    """Yield the sources in one order on every system, without a look into the folders that are left out."""
    for folder, names, files in os.walk(root):
        names[:] = sorted(set(names) - LEFT_OUT)  # os.walk goes on with what is left in the list
        yield from (Path(folder, name) for name in sorted(files) if name.endswith(".py"))


def _source_text(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8").replace("\r\n", "\n")
    except (OSError, UnicodeDecodeError):  # a handful of old modules declare another encoding
        return ""
