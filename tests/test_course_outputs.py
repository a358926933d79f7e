"""Outputs of cells: what is dropped before storing, and what the comparison sees that nbval does not."""

import base64
import io

import numpy as np
import pytest
import torch
from course_tree import OPENING, code, save
from nbformat.v4 import new_output
from PIL import Image

from shared.course import outputs
from shared.course.notebooks import canonical, code_cells, read, stated_minutes
from shared.errors import CourseError
from shared.plots import draw_product, figure, heatmap, picture, show


def png(array: np.ndarray) -> str:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, format="png")
    return base64.b64encode(buffer.getvalue()).decode()


def plain(height: int = 350, width: int = 700) -> np.ndarray:
    return np.full((height, width, 3), 255, dtype=np.uint8)


def test_a_figure_has_its_size_its_alt_text_and_the_same_bytes_each_time(capsys):
    def draw():
        drawing, (left, right) = figure(5, 2.5, columns=2)
        left.plot([1, 3, 2])
        right.imshow([[0, 1], [2, 3]])
        return drawing

    image = Image.open(io.BytesIO(picture(draw())))
    assert image.size == (500, 250) and "Software" not in image.info
    assert picture(draw()) == picture(draw())
    with pytest.raises(CourseError, match="alt is empty"):
        show(draw(), alt=" ")


def test_a_heatmap_labels_its_cells_and_stays_legible():
    _, axes = figure(3, 2)
    heatmap(axes, torch.tensor([[0.0, 1.0, 0.5], [0.2, 0.8, 0.4]]), rows="ab", columns="xyz", decimals=1)
    assert [text.get_text() for text in axes.texts] == ["0.0", "1.0", "0.5", "0.2", "0.8", "0.4"]
    assert [axes.texts[0].get_color(), axes.texts[1].get_color()] == ["white", "black"]  # on dark, on light
    assert [label.get_text() for label in axes.get_xticklabels()] == list("xyz")


def test_a_product_stands_where_rows_and_columns_meet():
    left, right = torch.tensor([[1.0, 2.0], [0.0, -1.0], [0.5, 0.0]]), torch.tensor([[3.0, 0.0, 1.0, 1.0]] * 2)
    drawing = draw_product(left, right, "abc", "xy", "klmn", ("l", "r", "p"), meet=(1, 3))
    empty, above, beside, product = drawing.axes
    assert not empty.axison
    assert [text.get_text() for text in above.texts] == ["3", "0", "1", "1"] * 2  # whole numbers
    assert [text.get_text() for text in beside.texts] == ["1.0", "2.0", "0.0", "-1.0", "0.5", "0.0"]
    assert [float(text.get_text()) for text in product.texts] == (left @ right).flatten().tolist()
    assert [label.get_text() for label in above.get_yticklabels()] == list("xy")
    assert [box.get_xy() for box in product.patches] == [(2.5, 0.5)]


@pytest.mark.parametrize("shift", range(8))
def test_a_repainted_block_is_seen_wherever_it_stands(shift):
    altered = plain()
    altered[100 + shift : 108 + shift, 200 + shift : 208 + shift] = 0
    difference = outputs.picture_difference(png(plain()), png(altered))
    assert difference and "near pixel (" in difference


def test_small_differences_pass_and_everywhere_small_ones_do_not():
    stored = plain() // 2
    assert outputs.picture_difference(png(stored), png(stored + 2)) is None
    assert "grey levels" in outputs.picture_difference(png(stored), png(stored + 3))
    edge = stored.copy()
    edge[:, 300] -= 60  # a line drawn 1 pixel wider, and paler, down the whole picture
    edge[:, 301] += 60
    assert "grey levels" in outputs.picture_difference(png(stored), png(edge))


def test_sizes_are_compared_even_where_content_is_not():
    assert outputs.picture_difference(png(plain()), png(plain() // 3), size_only=True) is None
    assert "700x350 pixels" in outputs.picture_difference(png(plain()), png(plain(360)), size_only=True)


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("\r  0%|  | 0/5 [00:00<?]\r100%|##| 5/5 [00:01<00:00, 4.2it/s]\n", ""),
        ("a warning\n\r  0%|  |\r100%|##|\nanother\n", "a warning\nanother\n"),
        ("\r  0%|  |\r100%|##|\r          \rafter the wipe\n", "after the wipe\n"),
        ("\r  0%|  |\r100%|##|\r          \r", ""),
        ("\r outer 0%\n\r inner 50%\x1b[A\n", ""),
        ("a line of Windows\r\n", "a line of Windows\n"),
        ("\x1b[31mred\x1b[0m\n", "\x1b[31mred\x1b[0m\n"),
    ],
)
def test_progress_bars_go_and_warnings_stay(text, kept):
    assert outputs.drop_progress(text) == kept


def test_a_bar_that_arrives_in_pieces_is_still_a_bar():
    pieces = ["careful\n\r 0", "%|", "\r100%|##|", "\n"]
    found = [new_output("stream", name="stderr", text=piece) for piece in pieces]
    found.insert(2, new_output("stream", name="stdout", text="shown\n"))
    found.append(new_output("display_data", {outputs.WIDGET: {"model_id": "1"}, "text/plain": "HBox"}))
    assert [(output.name, output.text) for output in outputs.clean_outputs(found)] == [
        ("stdout", "shown\n"),
        ("stderr", "careful\n"),
    ]


@pytest.mark.parametrize(
    ("stored", "new", "tolerance", "complaint"),
    [
        ("loss 2.00 at step 10", "loss 2.09 at step 10", 0.05, None),
        ("loss  2.00", "loss 12.00", 0.05, "stored 2, now 12"),
        ("loss 2.00", "loss 2.12", 0.05, "more than 5%"),
        ("loss 9.99", "loss 10.01", 0.05, None),
        ("  9.99 a", " 10.01 a", 0.05, None),  # columns keep their width
        ("loss 2.00", "LOSS 2.00", 0.05, "the text differs"),
        ("gpt2 3e-4", "gpt3 3e-4", 0.05, "the text differs"),  # a digit in a name is no number
        ("x -0.5", "x 0.5", 0.3, "stored -0.5, now 0.5"),
        ("1,000 of 3-4", "1,020 of 3-4", 0.05, None),
        ("loss nan", "loss 2.0", 0.05, "the text differs"),
    ],
)
def test_numbers_within_the_tolerance_and_words_equal(stored, new, tolerance, complaint):
    difference = outputs.text_difference(stored, new, tolerance)
    assert difference is None if complaint is None else complaint in difference


def test_alt_text_is_compared_too():
    stored, new = (
        [new_output("display_data", {"image/png": png(plain(16, 16))}, metadata={"image/png": {"alt": alt}})]
        for alt in ("falls to 2.0", "falls to 2.4")
    )
    assert "alt text of picture 1" in outputs.picture_differences(stored, new)[0]
    assert outputs.picture_differences(stored, new, tolerance=0.3) == []
    assert outputs.picture_differences(stored, [])[0].startswith("1 pictures are stored and 0")


def ran(cell):
    cell.execution_count = 1
    return cell


@pytest.mark.parametrize(
    ("cell", "complaint"),
    [
        (code("1 + 1"), "stored without having run"),
        (ran(code("1 + 1", tags=["nbval-skip"])), "nbval-skip hides it"),
        (ran(code("# NBVAL_IGNORE_OUTPUT\n1 + 1")), "NBVAL_IGNORE_OUTPUT hides it"),
        (ran(code("1 + 1", tags=["nbval-ignore-output"])), "without a reason"),
        (ran(code("1 + 1", tolerance=0.05)), "tolerance without a reason"),
        (ran(code("1 + 1", tolerance=5, reason="training")), "above 0 and at most"),
        (ran(code("1 + 1", tolerance=0.05, reason="training")), "the next cell must assert"),
    ],
)
def test_stored_cells_that_would_hide_something(tmp_path, cell, complaint):
    cells = code_cells(save(tmp_path / "01_x.ipynb", cell, ran(code("print(2)"))))
    assert complaint in "; ".join(outputs.stored_faults(cells[0], cells[1]))


def test_a_picture_without_alt_text_is_refused(tmp_path):
    cell = ran(code("draw()"))
    cell.outputs = [new_output("display_data", {"image/png": png(plain(16, 16))})]
    path = save(tmp_path / "01_x.ipynb", cell)
    assert "no alt text" in outputs.stored_faults(code_cells(path)[0])[0]


def test_a_tolerance_that_the_next_cell_backs_up_is_allowed(tmp_path):
    cells = [ran(code("1.5", tolerance=0.05, reason="30 steps of training")), ran(code("assert 1.5 < 2"))]
    found = code_cells(save(tmp_path / "01_x.ipynb", *cells))
    assert outputs.stored_faults(found[0], found[1]) == []


def test_at_most_one_cell_in_twenty_ignores_its_output(tmp_path):
    ignoring = code("1", tags=["nbval-ignore-output"], reason="names the processor")
    save(tmp_path / "ch98_x" / "01_x.ipynb", *[code("1") for _ in range(18)], ignoring)
    save(tmp_path / "ch98_x" / "exercises.ipynb", *[code("1") for _ in range(50)])  # not recorded, so not counted
    assert "1 of 19 code cells" in outputs.ignored_share_fault(tmp_path / "ch98_x")
    save(tmp_path / "ch98_x" / "02_x.ipynb", code("1"))
    assert outputs.ignored_share_fault(tmp_path / "ch98_x") is None


def test_what_no_second_run_would_show_is_named(tmp_path):
    cell = ran(code("object()"))
    cell.outputs = [
        new_output("execute_result", {"text/plain": "<object object at 0x7f12ab34cd56>"}),
        new_output("stream", name="stderr", text="/tmp/ipykernel_123/4.py:1: UserWarning"),
        new_output("stream", name="stdout", text=f"saved in {outputs.ROOT}/models"),
    ]
    found = " ".join(outputs.volatile_outputs(code_cells(save(tmp_path / "ch98_x" / "01_x.ipynb", cell))[0]))
    assert "ch98_x/01_x.ipynb In [1]" in found
    assert "memory address" in found and "temporary file" in found and "path of this machine" in found


def test_one_canonical_form(tmp_path):
    path = save(tmp_path / "01_x.ipynb", code("1", execution={"iopub": "now"}, collapsed=True, promote="shared/x.py"))
    notebook = read(path)
    assert notebook.cells[1].metadata == {"promote": "shared/x.py"}
    assert notebook.metadata.language_info.name == "python" and "version" not in notebook.metadata.language_info
    notebook.metadata["widgets"] = {"state": {}}
    notebook.cells[1]["id"] = notebook.cells[0]["id"]
    text = canonical(notebook)
    assert "widgets" not in text and text == canonical(read(path)).replace('"id": "c1"', '"id": "cell-2"')


def test_broken_and_missing_notebooks_are_one_clear_line(tmp_path):
    broken = tmp_path / "01_x.ipynb"
    broken.write_text('{"cells": [')
    for path in (broken, tmp_path / "02_x.ipynb"):
        with pytest.raises(CourseError, match=r"0\d_x.ipynb: .*; (check|restore)") as caught:
            read(path)
        assert "\n" not in str(caught.value)


def test_minutes_are_read_from_the_opening(tmp_path):
    assert stated_minutes(save(tmp_path / "01_x.ipynb")) == (12, 1)
    assert stated_minutes(save(tmp_path / "02_x.ipynb", opening=OPENING.replace("20 seconds", "5 minutes"))) == (12, 5)
    with pytest.raises(CourseError, match="minutes to read"):
        stated_minutes(save(tmp_path / "03_x.ipynb", opening="# no word about it"))
