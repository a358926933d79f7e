"""Figures that look alike in every notebook, come out byte for byte the same, and say in words what they show."""

import base64
import io
from collections.abc import Iterable, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from cycler import cycler
from IPython.display import display
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from shared.errors import CourseError

DPI = 100  # pixels per inch: a figure of 7 by 3.5 inches is 700 by 350 pixels

# Colours that people with any kind of colour vision tell apart ("Color Universal Design", Okabe and Ito, 2008);
# their yellow is left out, for it is too pale on white.
BLUE, RED, GREEN, PURPLE, ORANGE, SKY, BLACK = PALETTE = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#E69F00",
    "#56B4E9",
    "#000000",
)

STYLE: dict[Any, Any] = {
    "axes.axisbelow": True,
    "axes.edgecolor": "#444444",
    "axes.facecolor": "white",
    "axes.grid": True,
    "axes.prop_cycle": cycler(color=PALETTE),
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 12,
    "figure.facecolor": "white",
    "font.family": "DejaVu Sans",  # the font that matplotlib brings along: the same letters on every machine
    "font.size": 11,
    "grid.color": "#E3E3E3",
    "image.cmap": "viridis",
    "image.interpolation": "nearest",
    "legend.frameon": False,
    "lines.linewidth": 2.0,
    "savefig.bbox": None,  # a tight box would make the size depend on the text
}


def figure(width: float = 7.0, height: float = 3.5, rows: int = 1, columns: int = 1, **options):
    """A figure of `width` by `height` inches and its axes: one, or an array when there are several.

    `options` go to `Figure.subplots` (sharex, width_ratios, ...). The figure is not registered with pyplot, so the
    notebook shows it only where `show` is called.
    """
    mpl.rcParams.update(STYLE)
    drawing = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
    return drawing, drawing.subplots(rows, columns, **options)


def heatmap(axes: Axes, values, rows: Iterable[str] = (), columns: Iterable[str] = (), decimals=None, **options):
    """Draw a matrix (R, C), row 0 on top, with labels for its rows and columns; returns the image, for a colour bar.

    With `decimals` (an int), each cell shows its value. `options` go to `Axes.imshow` (vmin, vmax, cmap, ...).
    """
    values = np.asarray(values, dtype=float)  # (R, C)
    image = axes.imshow(values, aspect="auto", **options)
    axes.grid(False)
    axes.set_xticks(range(values.shape[1]), list(columns) or None)
    axes.set_yticks(range(values.shape[0]), list(rows) or None)
    if decimals is not None:
        for (row, column), value in np.ndenumerate(values):
            red, green, blue, _ = image.cmap(image.norm(value))
            ink = "black" if 0.299 * red + 0.587 * green + 0.114 * blue > 0.5 else "white"
            axes.text(column, row, f"{value:.{decimals}f}", ha="center", va="center", color=ink)
    return image


def draw_product(
    left,
    right,
    rows: Iterable[str] = (),
    inner: Iterable[str] = (),
    columns: Iterable[str] = (),
    titles: Sequence[str] = ("", "", ""),
    meet: tuple[int, int] | None = None,
    decimals: int = 1,
    cell: tuple[float, float] = (0.5, 0.3),
) -> Figure:
    """Draw left (R, N) @ right (N, C) as one works it out on paper: left beside the product, right above it.

    So each cell of the product stands where a row of left and a column of right meet; `meet` (row, column) outlines
    one such meeting. Positive numbers are blue and negative ones red; a matrix of whole numbers has no decimals.
    `titles` are those of left, right and product; `rows`, `inner` and `columns` label the three axes; `cell` is the
    width and height of a number in inches.
    """
    left, right = np.asarray(left, dtype=float), np.asarray(right, dtype=float)  # (R, N), (N, C)
    (tall, between), wide = left.shape, right.shape[1]
    drawing, axes = figure(
        1.5 + cell[0] * (between + wide),
        1.3 + cell[1] * (between + tall),
        rows=2,
        columns=2,
        width_ratios=(between, wide),
        height_ratios=(between, tall),
    )
    axes[0, 0].axis("off")
    product = left @ right  # (R, C)
    panels = [(axes[1, 0], left, rows, inner), (axes[0, 1], right, inner, columns), (axes[1, 1], product, (), ())]
    for (ax, values, down, across), title in zip(panels, titles, strict=True):
        limit = 1.6 * np.abs(values).max() + 1e-9
        places = 0 if (values == values.round()).all() else decimals
        heatmap(ax, values + 0.0, down, across, places, vmin=-limit, vmax=limit, cmap="RdBu")
        ax.set_title(title, fontsize=11)
        ax.tick_params(axis="x", rotation=90 if max(map(len, across), default=0) > 4 else 0)
        if not down:
            ax.set_yticks([])
        if not across:
            ax.set_xticks([])
    if meet is not None:
        row, column = meet
        box: dict[str, Any] = {"fill": False, "edgecolor": ORANGE, "linewidth": 3, "clip_on": False, "zorder": 3}
        axes[1, 0].add_patch(Rectangle((-0.5, row - 0.5), between, 1, **box))
        axes[0, 1].add_patch(Rectangle((column - 0.5, -0.5), 1, between, **box))
        axes[1, 1].add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, **box))
    return drawing


def picture(drawing: Figure) -> bytes:
    """The figure as a PNG of exactly its size, with nothing in it that depends on versions or time."""
    buffer = io.BytesIO()
    with mpl.rc_context(STYLE):
        drawing.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})
    return buffer.getvalue()


def show(drawing: Figure, alt: str) -> None:
    """Display a figure once, with `alt`: a sentence that tells someone who cannot see it what it shows."""
    if not alt.strip():
        raise CourseError("show(figure, alt): alt is empty; say in a sentence what the figure shows")
    data = {"image/png": base64.b64encode(picture(drawing)).decode("ascii"), "text/plain": f"[figure: {alt}]"}
    display(data, raw=True, metadata={"image/png": {"alt": alt}})
