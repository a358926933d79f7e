"""Recording: run a notebook from top to bottom in a fresh kernel and store what came out, and nothing else."""

import asyncio
import os
import subprocess
from collections.abc import Iterable
from pathlib import Path

from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from nbclient.exceptions import CellControlSignal, CellExecutionError
from nbformat import NotebookNode
from nbval.kernel import CURRENT_ENV_KERNEL_NAME, NbvalKernelspecManager

from shared.course.notebooks import code_cells, read, recorded, write
from shared.course.outputs import ANSI, clean_outputs, volatile_outputs
from shared.errors import CourseError

CELL_TIMEOUT = 900  # seconds
STARTUP_TIMEOUT = 300  # seconds until a kernel answers; it takes two, but not on a machine that is busy
THREADS = "2"  # part of what is recorded: sums over two threads round differently from sums over four


def kernel_environment() -> dict[str, str]:
    """The environment in which notebooks are recorded and checked."""
    fixed = {
        "PYTHONHASHSEED": "0",  # the order of sets of strings
        "OMP_NUM_THREADS": THREADS,
        "MKL_NUM_THREADS": THREADS,
        "OPENBLAS_NUM_THREADS": THREADS,
        "HF_HUB_OFFLINE": "1",  # otherwise transformers waits for a network that may not be there
        "TRANSFORMERS_VERBOSITY": "error",
        "COLUMNS": "100",
    }
    inherited = {name: value for name, value in os.environ.items() if name != "PYTEST_CURRENT_TEST"}
    return {**inherited, **fixed}  # (seeing pytest's variable, a kernel would not show what compiled code prints)


def execute(notebook: NotebookNode, folder: Path) -> None:
    """Run all cells in place, in a fresh kernel of this very Python that starts in `folder`."""
    manager = AsyncKernelManager(kernel_name=CURRENT_ENV_KERNEL_NAME, kernel_spec_manager=NbvalKernelspecManager())
    client = NotebookClient(
        notebook,
        km=manager,
        timeout=CELL_TIMEOUT,
        startup_timeout=STARTUP_TIMEOUT,
        record_timing=False,
        store_widget_state=False,
        resources={"metadata": {"path": str(folder)}},
    )
    asyncio.run(client.async_execute(env=kernel_environment(), stderr=subprocess.DEVNULL))


def record(path: str | Path) -> bool:
    """Run a notebook and store it with its outputs; True when the file changed.

    CourseError, and nothing stored, when a cell fails or shows something that no second run would show.
    """
    path = Path(path)
    notebook = read(path)
    before = path.read_bytes()
    try:
        execute(notebook, path.parent)
    except (CellExecutionError, CellControlSignal, RuntimeError, TimeoutError) as error:
        raise CourseError(f"{failed_cell(path, notebook)}: {_last_line(error)}; nothing was recorded") from error
    for cell in code_cells(path, notebook):
        cell.node.outputs = clean_outputs(cell.node.outputs)
    faults = [fault for cell in code_cells(path, notebook) for fault in volatile_outputs(cell)]
    if faults:
        raise CourseError("\n".join(faults))
    write(notebook, path)
    return path.read_bytes() != before


def failed_cell(path: Path, notebook: NotebookNode) -> str:
    """The cell at which an execution stopped: one with an error, or the last one that was started."""
    started = [cell for cell in code_cells(path, notebook) if cell.node.execution_count is not None]
    failed = [cell for cell in started if any(output.output_type == "error" for output in cell.node.outputs)]
    return str((failed or started)[-1]) if started else str(path)


def _last_line(error: BaseException) -> str:
    lines = [line for line in ANSI.sub("", str(error)).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


def notebooks_of(names: Iterable[str], root: Path) -> list[Path]:
    """What the names mean: a chapter folder stands for all its recorded notebooks, a notebook for itself."""
    found = []
    for name in names:
        path = Path(name) if Path(name).exists() else root / name
        if path.suffix == ".ipynb":
            found.append(path)
        elif path.is_dir() and recorded(path):
            found.extend(recorded(path))
        else:
            raise CourseError(f"{name}: neither a notebook nor a chapter folder with notebooks; check the name")
    return found
