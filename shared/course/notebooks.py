"""Notebooks as files: read them, write them in one canonical form, walk their code cells in reading order."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import nbformat
from nbformat import NotebookNode

import shared
from shared.errors import CourseError
from shared.files import write_atomically

ROOT = Path(next(iter(shared.__path__))).resolve().parent

# What the notebooks say about their kernel: the same on every machine. ruff skips a notebook without language_info.
KERNELSPEC = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}
LANGUAGE_INFO = {
    "file_extension": ".py",
    "mimetype": "text/x-python",
    "name": "python",
    "nbconvert_exporter": "python",
    "pygments_lexer": "ipython3",
}
VOLATILE_METADATA = ("execution", "ExecuteTime", "collapsed", "scrolled", "trusted", "vscode", "papermill", "editable")
SOLUTIONS = "solutions.ipynb"
EXERCISES = "exercises.ipynb"


@dataclass(frozen=True)
class CodeCell:
    """A code cell and where it stands. `number` counts the code cells from 1: the n of the reader's `In [n]`."""

    path: Path
    number: int
    node: NotebookNode

    @property
    def source(self) -> str:
        return self.node.source

    @property
    def metadata(self) -> NotebookNode:
        return self.node.metadata

    def __str__(self) -> str:
        return f"{self.path.parent.name}/{self.path.name} In [{self.number}]"


def read(path: str | Path) -> NotebookNode:
    """Parse a notebook. CourseError when the file is missing or is not a notebook of format 4."""
    path = Path(path)
    if not path.is_file():
        raise CourseError(f"{path}: there is no such notebook; check the path")
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        if raw["nbformat"] == 4:
            name_cells(raw["cells"])  # otherwise nbformat invents ids, others each time
            raw["nbformat_minor"] = 5
        notebook = nbformat.reads(json.dumps(raw), as_version=4)
        nbformat.validate(notebook)
        return notebook
    except (nbformat.ValidationError, ValueError, LookupError, TypeError, AttributeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CourseError(f"{path}: not a valid notebook ({reason}); restore it from git") from error


def name_cells(cells: list) -> None:
    """Give each cell an id of its own: a missing or repeated one becomes its position."""
    seen: set[str] = set()
    for position, cell in enumerate(cells, start=1):
        if not cell.get("id") or cell["id"] in seen:
            cell["id"] = f"cell-{position}"
        seen.add(cell["id"])


def canonical(notebook: NotebookNode) -> str:
    """The text of a notebook that depends on its content alone: sorted keys, stable ids, no editor's traces."""
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    notebook.metadata = NotebookNode(kernelspec=KERNELSPEC, language_info=LANGUAGE_INFO)
    name_cells(notebook.cells)
    for cell in notebook.cells:
        for key in VOLATILE_METADATA:
            cell.metadata.pop(key, None)
    nbformat.validate(notebook)
    return nbformat.writes(notebook, indent=1, ensure_ascii=False, sort_keys=True).rstrip("\n") + "\n"


def write(notebook: NotebookNode, path: str | Path) -> None:
    """Store a notebook in canonical form; the old file stays whole when writing fails."""
    write_text(path, canonical(notebook))


def write_text(path: str | Path, text: str) -> None:
    """Store a text in UTF-8; the old file stays whole when writing fails."""
    write_atomically(path, lambda handle: handle.write(text.encode("utf-8")))


def code_cells(path: Path, notebook: NotebookNode | None = None) -> list[CodeCell]:
    """The code cells of a notebook, numbered as the reader sees them."""
    notebook = read(path) if notebook is None else notebook
    nodes = [cell for cell in notebook.cells if cell.cell_type == "code"]
    return [CodeCell(path, number, node) for number, node in enumerate(nodes, start=1)]


def chapters(root: Path = ROOT) -> list[Path]:
    """The chapter folders, in order."""
    return sorted(path for path in Path(root).glob("ch[0-9][0-9]_*") if path.is_dir())


def chapter_number(chapter: Path) -> int:
    return int(chapter.name[2:4])


def lessons(chapter: Path) -> list[Path]:
    """The notebooks that are read, in reading order: those whose names begin with a number."""
    return sorted(chapter.glob("[0-9][0-9]_*.ipynb"))


def all_lessons(root: Path = ROOT) -> list[Path]:
    """The lessons of all chapters, in reading order."""
    return [path for chapter in chapters(root) for path in lessons(chapter)]


def recorded(chapter: Path) -> list[Path]:
    """The notebooks that are stored with outputs: the lessons and the solutions."""
    solutions = chapter / SOLUTIONS
    return lessons(chapter) + ([solutions] if solutions.exists() else [])


def stated_minutes(path: Path) -> tuple[int, int]:
    """Minutes to read and minutes to run, as the notebook's opening cell states them.

    The line reads "15 minutes to read, 1 minute to run" ("20 seconds to run" counts as one minute). CourseError when
    the opening cell does not say how long reading takes.
    """
    cells = read(path).cells
    opening = cells[0].source if cells else ""
    reading = re.search(r"(\d+) minutes? to read", opening)
    running = re.search(r"(\d+) (minute|second)s? to run", opening)
    if not reading or not running:
        raise CourseError(f'{path}: the first cell does not say "N minutes to read, M minutes to run"; add that line')
    return int(reading[1]), int(running[1]) if running[2] == "minute" else -(-int(running[1]) // 60)


def statement_lines(source: str) -> Iterator[str]:
    """The lines of a cell as Python's parser can take them: lines of IPython (%magic, !shell) become comments."""
    for line in source.splitlines():
        yield re.sub(r"^(\s*)[%!]", r"\1# ", line)
