"""Every notebook of the course as it is stored: canonical, opened as promised, short enough for one sitting."""

import pytest

from shared.course.notebooks import all_lessons, canonical, chapters, code_cells, read, recorded, stated_minutes

NOTEBOOKS = [path for chapter in chapters() for path in recorded(chapter)]
MOST_CODE_CELLS = 30


def label(path):
    return f"{path.parent.name}/{path.stem}"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=label)
def test_stored_as_record_stores_it(path):
    stored = path.read_text(encoding="utf-8")
    assert stored == canonical(read(path)), f"{label(path)}: run `python -m shared.course record {path.parent.name}`"


@pytest.mark.parametrize("path", all_lessons(), ids=label)
def test_read_at_one_sitting(path):
    reading, _ = stated_minutes(path)
    assert 5 <= reading <= 30, f"{label(path)}: {reading} minutes to read"
    assert len(code_cells(path)) <= MOST_CODE_CELLS, f"{label(path)}: too many code cells"
