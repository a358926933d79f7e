"""Recording and strict checking, with real kernels: what is stored passes, and each fault is caught and placed."""

import base64
import io
import json
import re
import shutil
import subprocess
import sys

import pytest
from course_tree import change, code, save
from PIL import Image

from shared.course.notebooks import ROOT, read, write
from shared.course.record import notebooks_of, record
from shared.errors import CourseError

FIGURE = """from shared.plots import figure, show

drawing, axes = figure(4, 2)
axes.plot([2, 1, 3])
show(drawing, alt=f"a line with {3} points")"""
BAR_SOURCE = """import sys

from tqdm import tqdm

for i in tqdm(range(3)):
    print(i)
print('careful', file=sys.stderr)"""
LOSS_SOURCE = """import random

loss = 2 + random.random() / 50
print(f'loss {loss:.6f}')"""
CELLS = [
    code(FIGURE),
    code("import os\nprint(sorted(os.listdir()), os.environ['PYTHONHASHSEED'])\n{'a', 'b', 'c'}"),
    code(
        "import sys\nfrom tqdm import tqdm\n\nfor i in tqdm(range(3)):\n    print(i)\nprint('careful', file=sys.stderr)"
    ),
    code("[][1]", tags=["raises-exception"]),
    code(LOSS_SOURCE, tolerance=0.05, reason="drawn"),
    code("assert loss < 2.1"),
    code("print('here')"),
    code("import platform\nplatform.machine()"),
]
FIGURE_CELL, SETS, BAR, ERROR, LOSS, _, PLAIN, MACHINE = range(1, 9)  # the n of In [n]


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """A recorded chapter, as record left it."""
    chapter = tmp_path_factory.mktemp("stored") / "ch98_x"
    path = save(chapter / "01_x.ipynb", *CELLS)
    assert record(path)
    return path


def test_what_is_stored(stored):
    cells = read(stored).cells[1:]
    assert [cell.execution_count for cell in cells] == list(range(1, 9))
    figure, sets, bar, error, *_ = (cell.outputs for cell in cells)
    assert len(figure) == 1 and figure[0].metadata["image/png"]["alt"] == "a line with 3 points"
    assert sets[0].text == "['01_x.ipynb'] 0\n"  # the kernel started in the notebook's folder
    assert [(output.name, output.text) for output in bar] == [("stdout", "0\n1\n2\n"), ("stderr", "careful\n")]
    assert error[0].traceback == ["IndexError: list index out of range"]
    assert "execution" not in cells[0].metadata and cells[3].metadata.tags == ["raises-exception"]


def test_recording_again_stores_the_same_bytes(tmp_path):
    path = save(tmp_path / "01_x.ipynb", *CELLS[:4])
    assert record(path)
    first = path.read_bytes()
    assert not record(path) and path.read_bytes() == first
    notebook = read(path)
    notebook.metadata["kernelspec"] = {"name": "other", "display_name": "Other", "language": "python"}
    path.write_text(json.dumps(notebook))
    assert record(path) and path.read_bytes() == first


def test_a_failing_or_volatile_notebook_is_not_stored(tmp_path):
    path = save(
        tmp_path / "ch98_x" / "01_x.ipynb", code("print(object())"), code("x = 1"), code("raise ValueError('no')")
    )
    before = path.read_bytes()
    with pytest.raises(CourseError, match=r"ch98_x/01_x.ipynb In \[3\]: ValueError: no; nothing was recorded"):
        record(path)
    notebook = read(path)
    notebook.cells.pop()
    write(notebook, path)
    with pytest.raises(CourseError, match=r"In \[1\]: the output shows a memory address"):
        record(path)
    assert len(path.read_bytes()) < len(before)


def test_chapters_stand_for_their_notebooks(tmp_path):
    for name in ("02_b", "01_a", "solutions", "exercises", "scratch"):
        save(tmp_path / "ch98_x" / f"{name}.ipynb")
    assert [path.stem for path in notebooks_of(["ch98_x"], tmp_path)] == ["01_a", "02_b", "solutions"]
    with pytest.raises(CourseError, match="ch97_y: neither a notebook nor a chapter"):
        notebooks_of(["ch97_y"], tmp_path)


def repaint(path):
    """Paint a block of 8 by 8 pixels into the stored figure, as someone with an image editor would."""
    notebook = read(path)
    output = notebook.cells[1].outputs[0]
    image = Image.open(io.BytesIO(base64.b64decode(output.data["image/png"])))
    image.paste("black", (40, 60, 48, 68))
    buffer = io.BytesIO()
    image.save(buffer, format="png")
    output.data["image/png"] = base64.b64encode(buffer.getvalue()).decode()
    write(notebook, path)


def clear(path):
    notebook = read(path)
    notebook.cells[PLAIN].outputs, notebook.cells[PLAIN].execution_count = [], None
    write(notebook, path)


def ignore(path):
    notebook = read(path)
    notebook.cells[MACHINE].metadata.update(tags=["nbval-ignore-output"], reason="machines have different names")
    write(notebook, path)


def test_each_fault_is_caught_and_placed(stored, tmp_path):
    """One run of pytest over the stored notebook, which passes, and a copy with a fault in all cells but one."""
    faults = {
        FIGURE_CELL: (repaint, "picture 1 differs"),
        SETS: (lambda path: change(path, "['here'] 0", "['here'] 1"), "Cell outputs differ"),
        BAR: (lambda path: change(path, '"careful\\n"', '"take care\\n"'), "Cell outputs differ"),
        ERROR: (lambda path: change(path, '"evalue": "list', '"evalue": "tuple'), "Cell outputs differ"),
        LOSS: (lambda path: change(path, '"loss 2.', '"loss 3.'), "stdout: a number differs by more than 5%"),
        PLAIN: (clear, "stored without having run"),
        MACHINE: (ignore, "ch98_x: 1 of 16 code cells ignore their output; at most 0 may"),
    }
    chapter = tmp_path / "ch98_x"
    chapter.mkdir()
    good, bad = chapter / "01_good.ipynb", chapter / "02_bad.ipynb"
    # In [2] lists the notebook's folder, which now holds three: let it print the same in each.
    text = stored.read_text().replace("sorted(os.listdir())", "['here']").replace("['01_x.ipynb']", "['here']")
    for path in (good, bad):
        path.write_text(text)
    for fault, _ in faults.values():
        fault(bad)
    save(chapter / "exercises.ipynb", code("raise NotImplementedError('exercise 98.1')"))
    shutil.copy(ROOT / "conftest.py", tmp_path)
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    command = [sys.executable, "-m", "pytest", "--nbval", "-p", "no:cacheprovider", "--color=no", "-rf", "ch98_x"]
    printed = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False).stdout

    failed = re.findall(r"^FAILED ch98_x/02_bad.ipynb::Cell (\d+)", printed, re.MULTILINE)
    assert [int(cell) + 1 for cell in failed] == sorted(faults), printed
    assert "7 failed, 9 passed" in printed
    for cell, (_, complaint) in faults.items():
        assert f"ch98_x/02_bad.ipynb In [{cell}]: {complaint}" in printed.replace("it is ", ""), printed
    assert re.search(r"minutes by chapter[ =]+\nch98_x +\d+\.\d\n", printed)
