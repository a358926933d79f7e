"""Closes the holes that nbval leaves when `pytest --nbval` compares the notebooks, and sums up minutes by chapter.

nbval asks no questions about pictures, about cells that were stored without having run, or about cells that say
"ignore my output". What is demanded of them instead is in shared/course/outputs.py; here it is built into subclasses
of nbval's notebook and cell.
"""

import os
import sys
from collections import defaultdict
from pathlib import Path
from unittest import mock

import nbval.plugin
import pytest

from shared.course import outputs
from shared.course.notebooks import CodeCell, code_cells
from shared.course.record import CELL_TIMEOUT, STARTUP_TIMEOUT, kernel_environment

# The learner's own work is judged by `python -m shared progress`, not by the course's tests.
collect_ignore_glob = ["*exercises.ipynb", "*.ipynb_checkpoints*"]

OUTPUT_TIMEOUT = 60  # seconds from a cell's end to its last output; nbval's 5 are too few on a busy machine
STRICT = sys.platform == "linux"  # elsewhere the notebooks run and must not fail, but other digits may come out

coalesce_streams = nbval.plugin.coalesce_streams
nbval.plugin.coalesce_streams = lambda found: coalesce_streams(outputs.drop_progress_outputs(found))


class CourseNotebook(nbval.plugin.IPyNbFile):
    """A notebook whose kernel is this very Python, in the environment in which notebooks are recorded."""

    def setup(self):
        self.config.option.nbval_current_env = True
        with mock.patch.dict(os.environ, kernel_environment(), clear=True):
            super().setup()

    def collect(self):
        for item in super().collect():
            yield CourseCell.from_parent(
                self, name=item.name, cell_num=item.cell_num, cell=item.cell, options=item.options
            )

    def code_cell(self, number):
        """The code cell of that number, counted from 1; None past the last one."""
        cells = code_cells(Path(self.path), self.nb)
        return cells[number - 1] if number <= len(cells) else None


class CourseCell(nbval.plugin.IPyNbCell):
    """A code cell, compared in full or within its tolerance; its complaints name it as the reader sees it: In [n]."""

    @property
    def code_cell(self) -> CodeCell:
        return self.parent.code_cell(self.cell_num + 1)

    @property
    def tolerance(self):
        return self.cell.metadata.get("tolerance", 0)

    def runtest(self):
        self.output_timeout = OUTPUT_TIMEOUT
        faults = outputs.stored_faults(self.code_cell, following=self.parent.code_cell(self.cell_num + 2))
        if outputs.IGNORE_TAG in self.cell.metadata.get("tags", []):
            faults += filter(None, [outputs.ignored_share_fault(Path(self.path).parent)])
        if faults:
            self.complain(faults)
        self.options["check"] = self.options["check"] and STRICT
        super().runtest()

    def complain(self, faults):
        self.raise_cell_error("; ".join(faults))

    def compare_outputs(self, test, ref, skip_compare=None):
        differences = outputs.picture_differences(ref, test, self.tolerance)
        if self.tolerance:
            differences += outputs.text_differences(ref, test, self.tolerance)
        if differences:
            self.complain(differences)
        return bool(self.tolerance) or super().compare_outputs(test, ref, skip_compare)

    def repr_failure(self, excinfo):
        return f"{self.code_cell}: {excinfo.value}\n{super().repr_failure(excinfo)}"


@pytest.hookimpl(wrapper=True)
def pytest_collect_file(file_path, parent):
    found = yield
    return [
        CourseNotebook.from_parent(parent, path=file_path) if isinstance(item, nbval.plugin.IPyNbFile) else item
        for item in found
    ]


def pytest_configure(config):
    option = config.option
    option.nbval_cell_timeout = min(option.nbval_cell_timeout, CELL_TIMEOUT)
    option.nbval_kernel_startup_timeout = max(option.nbval_kernel_startup_timeout, STARTUP_TIMEOUT)


def pytest_terminal_summary(terminalreporter, config):
    """Minutes by chapter, and for everything else by top folder, when notebooks were run."""
    if not config.option.nbval:
        return
    seconds: dict[str, float] = defaultdict(float)
    for reports in terminalreporter.stats.values():
        for report in reports:
            if hasattr(report, "duration") and hasattr(report, "nodeid"):
                seconds[report.nodeid.split("::")[0].split("/")[0]] += report.duration
    terminalreporter.section("minutes by chapter")
    for folder in sorted(seconds):
        terminalreporter.write_line(f"{folder:<20}{seconds[folder] / 60:>7.1f}")
    terminalreporter.write_line(f"{'together':<20}{sum(seconds.values()) / 60:>7.1f}")
