"""The notebooks without a library: they build what shared/bare holds, and they run where PyTorch is not installed."""

import json
import subprocess
import sys

import pytest

from shared.course.notebooks import ROOT, all_lessons, read

LIBRARIES = ("torch", "tensorflow", "jax", "scipy", "autograd")

RUN = """
import json, sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {libraries}:
            raise ModuleNotFoundError(f"{{name}} is not installed", name=name)

sys.meta_path.insert(0, Refuse())
space = {{"__name__": "__main__"}}
for number, cell in json.load(sys.stdin):
    try:
        exec(compile(cell["source"], f"In [{{number}}]", "exec"), space)
    except Exception:
        if not cell["may_raise"]:
            raise
"""


def builds_bare(path):
    cells = [cell for cell in read(path).cells if cell.cell_type == "code"]
    return any(str(cell.metadata.get("promote", "")).startswith("shared/bare/") for cell in cells)


BARE_LESSONS = [path for path in all_lessons() if builds_bare(path)]


def test_every_module_of_the_strand_is_built_by_a_notebook_and_each_chapter_up_to_5_has_one():
    built = {
        cell.metadata["promote"]
        for path in BARE_LESSONS
        for cell in read(path).cells
        if str(cell.metadata.get("promote", "")).startswith("shared/bare/")
    }
    modules = {f"shared/bare/{path.name}" for path in (ROOT / "shared" / "bare").glob("[!_]*.py")}
    assert built == modules
    assert [path.parent.name[:4] for path in BARE_LESSONS] == ["ch01", "ch02", "ch03", "ch04", "ch05"]


@pytest.mark.parametrize("path", BARE_LESSONS, ids=lambda path: path.parent.name)
def test_it_runs_where_no_library_is_installed(path):
    cells = [cell for cell in read(path).cells if cell.cell_type == "code"]
    assert any(cell.metadata.get("comparison") for cell in cells), "nothing is compared with a library"
    alone = [
        (number, {"source": cell.source, "may_raise": "raises-exception" in cell.metadata.get("tags", [])})
        for number, cell in enumerate(cells, 1)
        if not cell.metadata.get("comparison")
    ]
    assert len(alone) > 0.7 * len(cells)
    done = subprocess.run(
        [sys.executable, "-c", RUN.format(libraries=set(LIBRARIES))],
        input=json.dumps(alone),
        cwd=path.parent,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
