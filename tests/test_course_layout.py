"""The one-way stack: a folder of shared/ imports only from itself and the folders above it, and nothing in circles."""

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from shared.course.notebooks import ROOT

STACK = ["text", "model", "training", "tuning", "app"]
BASE = {"errors", "files", "memory"}  # imported by all
BESIDE = {  # what each folder or module beside the stack may import; nothing of the stack unless it says so
    "errors": set(),
    "files": {"errors"},
    "memory": set(),
    "plots": BASE,
    "corpora": BASE | {"corpora"},
    "bare": BASE | {"bare"},
    "course": BASE | {"bare", "course", "plots", *STACK[:-1]},
}


def allowed(part: str) -> set[str]:
    """The parts of shared/ (its folders and modules) that `part` may import."""
    if part in BESIDE:
        return BESIDE[part]
    if part in STACK:
        above = {*STACK[: STACK.index(part) + 1], "corpora"} | BASE
        return above | ({"course", "bare", "plots"} if part == "app" else set())
    return {*STACK, *BESIDE}  # shared/__main__.py


def modules(root: Path) -> dict[str, Path]:
    """Every module of shared/ by its dotted name."""
    found = {}
    for path in sorted((root / "shared").rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(name: str, path: Path, known: set[str], typing: bool) -> set[str]:
    """The modules of shared/ that a module imports, anywhere in it; `typing` says whether for type checkers counts."""
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    tree = ast.parse(path.read_text(encoding="utf-8"))
    if not typing:
        tree.body = [node for node in tree.body if not (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node))]
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package.rsplit(".", node.level - 1)[0] + "." if node.level else ""
            origin = (base + (node.module or "")).rstrip(".")
            inner = {f"{origin}.{alias.name}" for alias in node.names}
            found |= inner & known or {origin}
    return {module for module in found if module in known and module not in ("shared", name)}


def violations(root: Path) -> list[str]:
    found = modules(root)
    complaints = []
    for name, path in found.items():
        imported = imports(name, path, set(found), typing=True)
        part = name.split(".")[1] if "." in name else "__main__"
        for other in sorted(imported):
            if other.split(".")[1] not in allowed(part):
                complaints.append(f"{name} imports {other}: shared/{part} stands above or beside it")
    try:
        TopologicalSorter({name: imports(name, found[name], set(found), typing=False) for name in found}).prepare()
    except CycleError as error:
        complaints.append("imports in a circle: " + " <- ".join(error.args[1]))
    return complaints


def test_the_stack_of_the_course():
    assert violations(ROOT) == []


def test_every_folder_of_shared_has_its_place():
    parts = {name.split(".")[1] for name in modules(ROOT) if "." in name}
    assert parts <= {*STACK, *BESIDE, "__main__"}


@pytest.mark.parametrize(
    ("file", "source", "complaint"),
    [
        ("text/bpe.py", "from shared.model import gpt", "shared.text.bpe imports shared.model.gpt"),
        ("text/bpe.py", "def f():\n    import shared.model.gpt", "shared.text.bpe imports shared.model.gpt"),
        ("text/bpe.py", "from ..model.gpt import GPT", "shared.text.bpe imports shared.model.gpt"),
        ("corpora/stories.py", "import shared.text.bpe", "shared.corpora.stories imports shared.text.bpe"),
        ("model/gpt.py", "from shared.course import notebooks", "shared.model.gpt imports shared.course.notebooks"),
        ("text/bpe.py", "from shared.text import loader", "imports in a circle"),
        ("text/bpe.py", "if TYPE_CHECKING:\n    from shared.text.loader import Shard", None),
        ("text/bpe.py", "if TYPE_CHECKING:\n    from shared.model.gpt import GPT", "shared.text.bpe imports"),
        ("app/cli.py", "from shared.course import notebooks\nfrom shared.corpora.stories import World", None),
        ("model/gpt.py", "from shared.text.bpe import BPETokenizer", None),
    ],
)
def test_imports_against_the_stream_are_found(tmp_path, file, source, complaint):
    files = dict.fromkeys(
        ("text/bpe.py", "model/gpt.py", "app/cli.py", "corpora/stories.py", "course/notebooks.py"), ""
    )
    files |= {"text/loader.py": "from shared.text.bpe import f", file: source}
    for name, text in files.items():
        path = tmp_path / "shared" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        (path.parent / "__init__.py").touch()
    found = violations(tmp_path)
    assert found == [] if complaint is None else len(found) == 1 and complaint in found[0], found
