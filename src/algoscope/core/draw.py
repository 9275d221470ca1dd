"""Findings as Plotly figures. Notebook, HTML page, PNG and SVG draw each kind of panel in the same way.

Conventions: attention and shares have a fixed scale from 0 to 1; positive values are blue, negative ones orange, 0 is
white; the facets of a panel, and panels drawn side by side in one unit, have one scale; row 0 is on top; masked cells
are grey.
"""

import html
import math
from collections.abc import Hashable, Iterable
from dataclasses import replace
from itertools import chain, groupby, pairwise, product
from typing import Any

import plotly.graph_objects as go
from choreographer.browsers.chromium import Chromium
from plotly.offline import get_plotlyjs
from plotly.subplots import make_subplots

from algoscope.core.errors import DrawingError
from algoscope.core.finding import Finding
from algoscope.core.panel import Axis, Label, Panel, on_one_scale, span_of
from algoscope.core.plots import (
    LETTER,
    LONGEST,
    add_plot,
    colour_bar,
    colour_range,
    depth_of,
    dress,
    labels_below,
    lines_of,
    shown,
    width_of,
    wrapped,
)
from algoscope.core.visible import one_line

MAX_COLUMNS, MANY_ROWS = 4, 12
MAX_CELLS = 4_000_000  # of a figure: what a browser holds in some hundreds of MB
MAX_SIDE, MAX_AREA = 32_000, 1.2e8  # pixels of an image; Chrome draws no canvas beyond 65,535 and 2.7e8
GAP = 0.2  # share of a column's width that stays free beside its plot, at least
LEGIBLE_SCALE = 0.75  # least scale at which labels of 10 pixels can be read
LABELS, BAR_ROOM = 100, 100  # pixels: an axis title with its ticks, and a colour bar with its title
CAPTION_LINE = 16  # pixels: a line of a caption
NAMED = {"layer": "L{}", "head": "H{}"}
DRAWN_AXES = {"heatmap": 2, "scatter": 2, "lines": 1, "bars": 1}


def facets(panel: Panel) -> list[Panel]:
    """Split a panel into one panel per index of the leading axes, each drawn as one plot, with those labels in its
    title.
    """
    leading = panel.axes[: len(panel.axes) - DRAWN_AXES[panel.view]]
    panel = replace(panel, span=span_of([panel]))
    drawn = []
    for index in product(*(range(len(axis.labels)) for axis in leading)):
        words = [_named(axis, axis.labels[i]) for axis, i in zip(leading, index, strict=True)]
        one = panel.select(**{axis.name: i for axis, i in zip(leading, index, strict=True)})
        drawn.append(replace(one, title=": ".join([panel.heading, " ".join(words)]) if words else panel.heading))
    return drawn


def _named(axis: Axis, label: Label) -> str:
    """A label as part of a title; a number of a layer or a head gets its letter, a name such as L7H0 has it."""
    return NAMED[axis.name].format(label) if axis.name in NAMED and isinstance(label, int) else str(label)


def figure(panel: Panel) -> go.Figure:
    """One plot of one facet, with its title, axes, units and colour bar."""
    fig = go.Figure()
    add_plot(fig, panel, None, colour_bar(panel))
    title = {"text": shown(panel.heading), "font": {"size": 14}, "x": 0, "xanchor": "left", "xref": "container"}
    height = depth_of(panel) + 96 + labels_below(panel)
    right = 10 + LETTER * max((len(mark.text) for mark in panel.marks if panel.view == "bars"), default=0)
    fig.update_layout(title=title | {"y": 0.98}, height=height, margin={"l": 10, "r": right, "t": 56, "b": 40})
    return dress(fig)


def rows_of_plots(panels: Iterable[Panel]) -> list[list[Panel]]:
    """Arrange facets in rows, so that plots to be compared are side by side.

    Panels with the same `beside` (attention on two inputs) become columns, and their facets rows; many facets stand
    several in a row. The facets of a single panel (before and after training) fill rows of at most `MAX_COLUMNS`.
    """
    rows: list[list[Panel]] = []
    for beside, group in groupby(on_one_scale(panels), key=lambda panel: panel.beside):
        drawn = [facets(panel) for panel in group]
        if beside:
            together = [list(row) for row in zip(*drawn, strict=True)]
            side = max(MAX_COLUMNS // len(drawn), 1) if len(together) > MANY_ROWS else 1
            rows += [list(chain(*together[i : i + side])) for i in range(0, len(together), side)]
        else:
            rows += [one[i : i + MAX_COLUMNS] for one in drawn for i in range(0, len(one), MAX_COLUMNS)]
    return rows


def figures_of(panels: Iterable[Panel]) -> list[tuple[str, list[list[Panel]]]]:
    """Rows of plots grouped by caption, as (caption, rows); neighbouring rows with equal captions form one group."""

    def caption(row: list[Panel]) -> str:
        return " ".join(dict.fromkeys(plot.caption for plot in row if plot.caption))

    return [(text, list(rows)) for text, rows in groupby(rows_of_plots(panels), key=caption)]


def compose(finding: Finding) -> go.Figure:
    """Every facet of every panel in one figure."""
    if not finding.panels:
        raise DrawingError(f"the finding {finding.kind!r} has no panels to draw; its numbers are in to_json()")
    cells = sum(panel.values.size for panel in finding.panels)
    if cells > MAX_CELLS:
        raise DrawingError(f"{cells:,} cells are more than a figure holds ({MAX_CELLS:,}): {_fewer(finding)} .json")
    figures = figures_of(finding.panels)
    rows = [row for _, group in figures for row in group]
    columns = max(map(len, rows))
    depths = [max(map(depth_of, row)) for row in rows]
    each = max(width_of(plot) for row in rows for plot in row)
    between = max(GAP * each, _room_between(rows))
    width = max(int(columns * ((1 - GAP) * each + between)), 640)
    captions = [line for text, group in figures for line in [""] * (len(group) - 1) + [wrapped(text, width - 100)]]
    below = [60 + max(map(labels_below, row)) for row in rows]
    gaps = [40 + space + CAPTION_LINE * lines_of(text) for space, text in zip(below, captions, strict=True)]
    area = sum(depths) + sum(gaps[:-1])
    fig = make_subplots(rows=len(rows), cols=columns, horizontal_spacing=between / width)
    for r, row in enumerate(rows):
        high = 1 - (sum(depths[:r]) + sum(gaps[:r])) / area
        for c, plot in enumerate(row):
            axes = fig.get_subplot(r + 1, c + 1)
            axes.yaxis.domain = (max(high - depths[r] / area, 0), high)
            title = {"text": wrapped(plot.heading, width // columns - 80), "font": {"size": 13}, "showarrow": False}
            over = {"x": sum(axes.xaxis.domain) / 2, "xanchor": "center", "y": high, "yanchor": "bottom"}
            fig.add_annotation(**title, **over, xref="paper", yref="paper")
        caption = {"text": captions[r], "font": {"size": 11}, "showarrow": False, "align": "left"}
        foot = {"y": max(high - depths[r] / area, 0), "yanchor": "top", "yshift": 10 - below[r]}
        if captions[r]:
            fig.add_annotation(**caption, **foot, x=0, xanchor="left", xref="paper", yref="paper")
    colour_bars = _colour_bars(fig, rows, area)
    for r, row in enumerate(rows):
        for c, plot in enumerate(row):
            add_plot(fig, plot, (r + 1, c + 1), colour_bars.get((r, c)))
    claim = wrapped(finding.claim, width - 100)
    top, bottom = 100 + 20 * claim.count("<br>"), gaps[-1] - 40
    fig.update_layout(height=area + top + bottom, width=width, margin={"t": top, "b": bottom})
    fig.update_layout(title={"text": claim, "font": {"size": 15}, "y": 1, "yanchor": "top", "pad": {"t": 34}})
    return dress(fig)


def to_html(finding: Finding) -> str:
    """An HTML page that works offline: it contains Plotly's script."""
    page: str = compose(finding).to_html(include_plotlyjs=True, full_html=True, config={"responsive": True})
    return page.replace("<head>", f"<head><title>algoscope: {html.escape(one_line(finding.kind))}</title>", 1)


def to_image(finding: Finding, kind: str) -> bytes:
    """PNG (at twice the size, less where that is more than a browser draws) or SVG bytes. Raises DrawingError for a
    figure that is too large, and where no browser is installed.
    """
    fig, scale = compose(finding), 1.0
    if kind == "png":
        width, height = fig.layout.width, fig.layout.height
        scale = min(2.0, MAX_SIDE / max(width, height), math.sqrt(MAX_AREA / (width * height)))
        if scale < LEGIBLE_SCALE:
            raise DrawingError(
                f"the figure has {width:,} x {height:,} pixels, more than a PNG holds: {_fewer(finding)} .html or .svg"
            )
    try:
        image: bytes = fig.to_image(format=kind, scale=scale)
    except (RuntimeError, OSError) as error:
        if find_browser() is not None:
            reason = "it took too long" if isinstance(error, TimeoutError) else one_line(error)
            raise DrawingError(
                f"the browser could not draw the {kind.upper()}: {reason}; write .html instead"
            ) from error
        raise DrawingError(
            f"{kind.upper()} needs Chrome or Chromium, which is not installed: install one (Debian: apt install "
            "chromium; anywhere: `plotly_get_chrome`), or write .html instead"
        ) from error
    return image


def _fewer(finding: Finding) -> str:
    """How to ask for less: the last words of a message, before the endings that hold more."""
    heads = any(axis.name == "head" for panel in finding.panels for axis in panel.axes)
    return ("choose heads (--head L0H1, `heads=`) or shorter inputs" if heads else "ask for less") + ", or write"


def find_browser() -> str | None:
    """Path of the Chrome or Chromium that draws images, or None."""
    path = Chromium.find_browser(skip_local=False)
    return None if path is None else str(path)


def script() -> str:
    """Plotly's JavaScript, for a page with several figures."""
    return get_plotlyjs()


def _room_between(rows: list[list[Panel]]) -> int:
    """Pixels that the row labels of a plot and the colour bar of its left neighbour need between the two."""
    needed = 0
    for left, right in (pair for row in rows for pair in pairwise(row)):
        labels = max(len(str(label)) for label in right.axes[-2].labels) if right.view == "heatmap" else 0
        own_bar = left.view == "heatmap" and _bar_of(left) != _bar_of(right)
        needed = max(needed, LABELS + LETTER * min(labels, LONGEST) + BAR_ROOM * own_bar)
    return needed


def _bar_of(plot: Panel) -> Hashable:
    """Plots with an equal value here can be read from one colour bar."""
    low, high, _ = colour_range(plot)
    return plot.unit, plot.scale, low, high


def _colour_bars(fig: go.Figure, rows: list[list[Panel]], area: int) -> dict[tuple[int, int], dict[str, Any]]:
    """Colour bars by (row, column): one per scale, at the right of the first row that has a heatmap on that scale."""
    last_of: dict[Hashable, tuple[int, int]] = {}
    for r, row in enumerate(rows):
        last = {_bar_of(plot): (r, c) for c, plot in enumerate(row) if plot.view == "heatmap"}
        last_of = last | last_of
    bars = {}
    for r, c in last_of.values():
        axes = fig.get_subplot(r + 1, c + 1)
        low, high = axes.yaxis.domain
        position = {"x": axes.xaxis.domain[1], "xpad": 8, "y": high, "yanchor": "top", "ypad": 0}
        size = {"lenmode": "pixels", "len": max((high - low) * area, 130)}
        bars[r, c] = colour_bar(rows[r][c]) | position | size
    return bars
