"""The outputs of cells: made canonical for storing, and compared where nbval does not look.

nbval compares text exactly and pictures not at all, and it skips a cell that was stored without having run. The
repo's conftest.py calls the functions below to close those gaps; `record` calls them so that what it stores passes.
"""

import base64
import io
import re
from collections import defaultdict
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

import numpy as np
from nbformat import NotebookNode
from PIL import Image

from shared.course.notebooks import ROOT, CodeCell, code_cells, recorded

RMS_LIMIT = 2.0  # grey levels, over the whole picture
BLOCK = 8  # pixels: the side of the squares over which a local change is averaged ...
BLOCK_LIMIT = 40.0  # ... and by how many grey levels the average of one may move
MAX_TOLERANCE = 0.5
MAX_IGNORED_SHARE = 0.05  # of a chapter's code cells
IGNORE_TAG = "nbval-ignore-output"
FORBIDDEN_TAGS = {"nbval-skip", "nbval-check-output"}  # nbval knows them; here every cell runs and is compared
FORBIDDEN_COMMENT = re.compile(r"^\s*#+\s*(PYTEST_VALIDATE_IGNORE_OUTPUT|NBVAL_[A-Z_]+)\s*$", re.MULTILINE)
WIDGET = "application/vnd.jupyter.widget-view+json"

LINE = re.compile(r"[^\n]*\n|[^\n]+")  # str.splitlines would cut at carriage returns too
REWRITTEN = re.compile(r"^.*\r(?=[^\n])", re.MULTILINE)
ANSI = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
NUMBER = re.compile(r"(?<![\w.])[-+]?(?:\d[\d_]*(?:,\d{3})*(?:\.\d+)?|\.\d+)(?:[eE][-+]?\d+)?")


# ---- made canonical, for storing


def drop_progress(text: str) -> str:
    """The text without progress bars, which are the lines that a carriage return rewrote.

    A bar that wiped itself with blanks leaves the cursor at the start of its line; what follows the wipe stays.
    """
    kept = []
    for line in LINE.findall(text):
        *rewritten, last = ANSI.sub("", line).split("\r")
        if not rewritten:
            kept.append(line)
        elif len(rewritten) == 1 and last == "\n":  # a line that ends as on Windows
            kept.append(rewritten[0] + last)
        elif any(piece and not piece.strip() for piece in rewritten) and last.strip():
            kept.append(last)
    return "".join(kept)


def drop_progress_outputs(outputs: Sequence[NotebookNode]) -> list[NotebookNode]:
    """Without progress bars, be they lines on stderr or widgets; each stream's pieces become one output.

    A stream arrives in pieces that are cut anywhere, so they are joined before a bar can be told from a warning.
    """
    joined: dict[str, NotebookNode] = {}
    kept = []
    for output in outputs:
        if output.output_type != "stream":
            if WIDGET not in output.get("data", {}):
                kept.append(output)
        elif output.name in joined:
            joined[output.name].text += output.text
        else:
            joined[output.name] = NotebookNode(output_type="stream", name=output.name, text=output.text)
            kept.append(joined[output.name])
    if "stderr" in joined:
        joined["stderr"].text = drop_progress(joined["stderr"].text)
    return [output for output in kept if output.output_type != "stream" or output.text]


def clean_outputs(outputs: Sequence[NotebookNode]) -> list[NotebookNode]:
    """Outputs as they are stored: streams between two displays joined, no bars, tracebacks cut to their last line."""
    cleaned = []
    shown = [output for output in outputs if WIDGET not in output.get("data", {})]
    for is_stream, group in groupby(shown, key=lambda output: output.output_type == "stream"):
        if is_stream:
            streams = drop_progress_outputs(list(group))
            # The order in which the two streams arrive is chance.
            cleaned.extend(sorted(streams, key=lambda output: output.name != "stdout"))
        else:
            cleaned.extend(group)
    for output in cleaned:
        if output.output_type == "stream":
            output.text = REWRITTEN.sub("", output.text)
        elif output.output_type == "error":
            output.traceback = [f"{output.ename}: {output.evalue}"]
        else:
            for mime, data in output.data.items():
                if mime.startswith("image/") and isinstance(data, str):
                    output.data[mime] = data.strip()
    return cleaned


def volatile_outputs(cell: CodeCell) -> list[str]:
    """What in a cell's text outputs would differ on another machine or in another run."""
    faults = []
    text = "\n".join(value for values in text_fields(cell.node.outputs).values() for value in values)
    if re.search(r" at 0x[0-9a-fA-F]{6,}", text):
        faults.append(f"{cell}: the output shows a memory address; print something that names the object instead")
    if re.search(r"ipykernel_\d+", text):
        faults.append(f"{cell}: the output names a temporary file of the kernel (a warning?); mend what warns")
    for folder in {str(ROOT), str(Path.home())}:
        if len(folder) > 1 and re.search(re.escape(folder) + r"(?![\w-])", text):
            faults.append(f"{cell}: the output shows a path of this machine ({folder}); print a relative one")
    return faults


# ---- compared


def text_fields(outputs: Sequence[NotebookNode]) -> dict[str, list[str]]:
    """All text among the outputs, by kind (stdout, stderr, error or MIME type), each kind in its order."""
    fields: dict[str, list[str]] = defaultdict(list)
    for output in outputs:
        if output.output_type == "stream":
            fields[output.name].append(output.text)
        elif output.output_type == "error":
            fields["error"].append(f"{output.ename}: {output.evalue}")
        else:
            for mime, value in output.data.items():
                if not mime.startswith("image/") and isinstance(value, str):
                    fields[mime].append(value)
    return dict(fields)


def pictures(outputs: Sequence[NotebookNode]) -> list[tuple[str, str]]:
    """PNG data (base64) and alt text of every picture among the outputs."""
    return [
        (output.data["image/png"], output.metadata.get("image/png", {}).get("alt", ""))
        for output in outputs
        if "image/png" in output.get("data", {})
    ]


def pixels(png: str) -> np.ndarray:
    """Base64 of a PNG -> grey levels 0 to 255 as float32, shape (height, width, 3), transparency on white."""
    image = Image.open(io.BytesIO(base64.b64decode(png))).convert("RGBA")
    white = Image.new("RGBA", image.size, "white")
    return np.asarray(Image.alpha_composite(white, image).convert("RGB"), dtype=np.float32)


def picture_difference(stored: str, new: str, size_only: bool = False) -> str | None:
    """In what two PNGs (base64) differ, or None.

    They may differ by 2 grey levels, root mean square over the whole picture, and no block of 8 by 8 pixels may move
    its average by more than 40: a repainted patch does that, an edge drawn a little differently does not.
    """
    before, after = pixels(stored), pixels(new)  # (height, width, 3)
    if before.shape != after.shape:
        sizes = [f"{array.shape[1]}x{array.shape[0]}" for array in (before, after)]
        return f"is {sizes[0]} pixels where it is stored and {sizes[1]} now"
    if size_only:
        return None
    difference = after - before  # (height, width, 3)
    rms = float(np.sqrt(np.mean(difference**2)))
    height, width = (side // BLOCK for side in difference.shape[:2])
    blocks = difference[: height * BLOCK, : width * BLOCK].reshape(height, BLOCK, width, BLOCK, 3)
    moved = np.abs(blocks.mean(axis=(1, 3))).max(axis=-1)  # (height, width), in blocks
    if rms <= RMS_LIMIT and moved.max(initial=0) <= BLOCK_LIMIT:
        return None
    row, column = np.unravel_index(np.argmax(moved), moved.shape)
    place = f"most of all near pixel ({column * BLOCK}, {row * BLOCK})"
    return f"differs by {rms:.1f} grey levels (root mean square; {RMS_LIMIT:g} are allowed), {place}"


def text_difference(stored: str, new: str, tolerance: float) -> str | None:
    """In what two texts differ when their numbers may, by `tolerance` relative to the larger one; or None.

    The words between the numbers are equal; the width of blanks is not compared, for numbers may change theirs.
    """
    words = [" ".join(NUMBER.sub("#", text).split()) for text in (stored, new)]
    if words[0] != words[1]:
        return f"the text differs: stored {_shortened(stored)}, now {_shortened(new)}"
    numbers = [
        [float(found.replace("_", "").replace(",", "")) for found in NUMBER.findall(text)] for text in (stored, new)
    ]
    for before, after in zip(*numbers, strict=True):
        if abs(before - after) > tolerance * max(abs(before), abs(after)):
            return f"a number differs by more than {tolerance:.0%}: stored {before:g}, now {after:g}"
    return None


def _numbers(text: str) -> list[float]:
    return [float(found.replace("_", "").replace(",", "")) for found in NUMBER.findall(text)]


def _shortened(text: str, limit: int = 120) -> str:
    return repr(text if len(text) <= limit else text[: limit - 3] + "...")


def picture_differences(stored: Sequence[NotebookNode], new: Sequence[NotebookNode], tolerance: float = 0) -> list[str]:
    """Complaints about the pictures of one cell: their number, size, content and alt text.

    With a tolerance, content is not compared, and the numbers in the alt text may differ by it.
    """
    before, after = pictures(stored), pictures(new)
    if len(before) != len(after):
        return [f"{len(before)} pictures are stored and {len(after)} come out now"]
    complaints = []
    for number, ((old_png, old_alt), (new_png, new_alt)) in enumerate(zip(before, after, strict=True), start=1):
        difference = picture_difference(old_png, new_png, size_only=tolerance > 0)
        if difference:
            complaints.append(f"picture {number} {difference}")
        difference = text_difference(old_alt, new_alt, tolerance)
        if difference:
            complaints.append(f"the alt text of picture {number}: {difference}")
    return complaints


def text_differences(stored: Sequence[NotebookNode], new: Sequence[NotebookNode], tolerance: float) -> list[str]:
    """Complaints about the text of a cell whose numbers may differ by `tolerance`."""
    before, after = text_fields(stored), text_fields(new)
    complaints = []
    for kind in sorted(before.keys() | after.keys()):
        old, now = before.get(kind, []), after.get(kind, [])
        if len(old) != len(now):
            complaints.append(f"{kind}: {len(old)} outputs are stored and {len(now)} come out now")
            continue
        found = (text_difference(*pair, tolerance) for pair in zip(old, now, strict=True))
        complaints.extend(f"{kind}: {difference}" for difference in found if difference)
    return complaints


# ---- what a stored cell must not look like


def stored_faults(cell: CodeCell, following: CodeCell | None = None) -> list[str]:
    """What is wrong with a stored cell before anything runs; `following` is the next code cell."""
    tags = set(cell.metadata.get("tags", []))
    hidden = sorted(tags & FORBIDDEN_TAGS) + FORBIDDEN_COMMENT.findall(cell.source)
    explained = bool(str(cell.metadata.get("reason", "")).strip())
    faults = []
    if cell.source.strip() and cell.node.execution_count is None:
        faults.append("it is stored without having run, so nothing would be compared; record the notebook")
    if hidden:
        faults.append(f"{hidden[0]} hides it from the comparison; every cell runs and is compared")
    if IGNORE_TAG in tags and not explained:
        faults.append(f'its output is ignored without a reason; add the metadata key "reason" beside {IGNORE_TAG}')
    if "tolerance" in cell.metadata:
        faults.extend(_tolerance_faults(cell, following, explained))
    for output in cell.node.outputs:
        for mime in output.get("data", {}):
            if mime.startswith("image/") and not str(output.metadata.get(mime, {}).get("alt", "")).strip():
                faults.append("a picture has no alt text; display it with shared.plots.show(figure, alt=...)")
    return faults


def _tolerance_faults(cell: CodeCell, following: CodeCell | None, explained: bool) -> list[str]:
    tolerance = cell.metadata["tolerance"]
    faults = []
    if not isinstance(tolerance, int | float) or not 0 < tolerance <= MAX_TOLERANCE:
        faults.append(f"its tolerance is {tolerance!r}; it must be a number above 0 and at most {MAX_TOLERANCE}")
    if not explained:
        faults.append('it has a tolerance without a reason; add the metadata key "reason"')
    if following is None or not re.search(r"\bassert", following.source):
        faults.append("it has a tolerance, so the next cell must assert what has to hold; it asserts nothing")
    return faults


def ignored_share_fault(chapter: Path) -> str | None:
    """A complaint when too many of a chapter's code cells ignore their output, or None."""
    cells = [cell for path in recorded(chapter) for cell in code_cells(path) if cell.source.strip()]
    ignored = [cell for cell in cells if IGNORE_TAG in cell.metadata.get("tags", [])]
    if len(ignored) <= MAX_IGNORED_SHARE * len(cells):
        return None
    allowed = int(MAX_IGNORED_SHARE * len(cells))
    return f"{chapter.name}: {len(ignored)} of {len(cells)} code cells ignore their output; at most {allowed} may"
