"""Findings as Plotly figures. One way to draw each kind of panel, for notebook, page, PNG and SVG alike.

Conventions: attention and shares on one fixed scale from 0 to 1; signed values blue positive, orange negative, white 0,
one scale for all facets; row 0 on top; a cell that does not exist is grey, never a colour of the scale.
"""

import html
import math
import re
import textwrap
from collections.abc import Iterable
from dataclasses import replace
from itertools import groupby, product
from typing import Any

import numpy as np
import plotly.graph_objects as go
from choreographer.browsers.chromium import Chromium
from plotly.offline import get_plotlyjs
from plotly.subplots import make_subplots

from algoscope.core.errors import DrawingError
from algoscope.core.finding import Finding
from algoscope.core.panel import Axis, Panel

BLUE, ORANGE, INK, GRID, MASKED = "#2166ac", "#e66100", "#1f2933", "#e4e7eb", "#d3d7dc"
SEQUENTIAL = [[0.0, "#ffffff"], [0.5, "#7fb2dc"], [1.0, "#08306b"]]
DIVERGING = [[0.0, ORANGE], [0.5, "#ffffff"], [1.0, BLUE]]
FONT = {"family": "Inter, Helvetica, Arial, sans-serif", "size": 12, "color": INK}
MAX_TICKS = 26
MAX_COLUMNS = 4
DRAWN_AXES = {"heatmap": 2, "scatter": 2, "lines": 1, "bars": 1}


def facets(panel: Panel) -> list[Panel]:
    """One panel for each index of the leading axes, with those labels in its title: what is drawn as one plot."""
    leading = panel.axes[: len(panel.axes) - DRAWN_AXES[panel.view]]
    drawn = []
    for index in product(*(range(len(axis.labels)) for axis in leading)):
        words = [_facet_word(axis, i) for axis, i in zip(leading, index, strict=True)]
        one = panel.select(**{axis.name: i for axis, i in zip(leading, index, strict=True)})
        drawn.append(replace(one, title=": ".join([panel.heading, " ".join(words)]) if words else panel.heading))
    return drawn


def figure(panel: Panel) -> go.Figure:
    """One plot of one facet, with its title, axes, units and colour bar."""
    fig = go.Figure()
    _add(fig, panel, None, show_scale=True)
    title = {"text": panel.heading, "font": {"size": 14}, "x": 0, "xanchor": "left", "xref": "container", "y": 0.98}
    fig.update_layout(title=title, height=_height(panel) - 40, margin={"l": 10, "r": 10, "t": 56, "b": 40})
    return _dress(fig)


def rows_of_plots(panels: Iterable[Panel]) -> list[list[Panel]]:
    """The facets in rows, so that what invites comparison stands side by side.

    Panels with the same `beside` (attention on two inputs) become columns, their facets rows; a panel on its own
    puts its facets (before and after training) in one row of at most `MAX_COLUMNS`.
    """
    rows: list[list[Panel]] = []
    for beside, group in groupby(panels, key=lambda panel: panel.beside):
        drawn = [facets(panel) for panel in group]
        if beside:
            rows += [list(row) for row in zip(*drawn, strict=True)]
        else:
            rows += [one[i : i + MAX_COLUMNS] for one in drawn for i in range(0, len(one), MAX_COLUMNS)]
    return rows


def compose(finding: Finding) -> go.Figure:
    """Every facet of every panel in one figure."""
    if not finding.panels:
        raise DrawingError(f"the finding {finding.kind!r} has no panels to draw; its numbers are in to_json()")
    rows = rows_of_plots(finding.panels)
    columns = max(map(len, rows))
    heights = [max(map(_height, row)) for row in rows]
    fig = make_subplots(
        rows=len(rows),
        cols=columns,
        subplot_titles=[row[i].heading if i < len(row) else "" for row in rows for i in range(columns)],
        horizontal_spacing=0.2 / columns,
        vertical_spacing=100 / sum(heights) if len(rows) > 1 else 0,
        row_heights=heights,
    )
    units: set[str] = set()
    for r, row in enumerate(rows):
        for c, plot in enumerate(row):
            _add(fig, plot, (r + 1, c + 1), show_scale=plot.view == "heatmap" and plot.unit not in units)
            units.add(plot.unit)
    width = max(480 * columns, 640)
    claim = "<br>".join(textwrap.wrap(finding.claim, width // 8))
    fig.update_layout(height=sum(heights) + 60, width=width, margin={"t": 110})
    fig.update_layout(title={"text": claim, "font": {"size": 15}})
    return _dress(fig)


def to_html(finding: Finding) -> str:
    """A page that opens offline: Plotly's script is inside it."""
    page: str = compose(finding).to_html(include_plotlyjs=True, full_html=True, config={"responsive": True})
    return page.replace("<head>", f"<head><title>algoscope: {finding.kind}</title>", 1)


def to_image(finding: Finding, kind: str) -> bytes:
    """PNG (at twice the size) or SVG bytes. Raises DrawingError where no browser is there to draw it."""
    try:
        image: bytes = compose(finding).to_image(format=kind, scale=2 if kind == "png" else 1)
    except (RuntimeError, OSError) as error:
        raise DrawingError(
            f"{kind.upper()} needs Chrome or Chromium, which is not found here: install one (Debian: apt install "
            "chromium; anywhere: `plotly_get_chrome`), or write .html instead"
        ) from error
    return image


def find_browser() -> str | None:
    """Path of the Chrome or Chromium that draws images, or None."""
    found = Chromium.find_browser(skip_local=False)
    return None if found is None else str(found)


def script() -> str:
    """Plotly's own script, for a page that holds several figures."""
    return get_plotlyjs()


def _facet_word(axis: Axis, index: int) -> str:
    label = axis.labels[index]
    return {"layer": f"L{label}", "head": f"H{label}"}.get(axis.name, str(label))


def _height(panel: Panel) -> int:
    if panel.view == "heatmap":
        return 170 + 24 * min(len(panel.axes[-2].labels), 20)
    return 380 if panel.view == "scatter" else 340


def _add(fig: go.Figure, panel: Panel, place: tuple[int, int] | None, show_scale: bool) -> None:
    """Draw one facet into the figure, at a (row, column) of a grid or as the only plot."""
    where: dict[str, Any] = {} if place is None else {"row": place[0], "col": place[1]}
    draw = {"heatmap": _heatmap, "scatter": _scatter, "lines": _lines, "bars": _bars}[panel.view]
    for trace in draw(panel, show_scale):
        fig.add_trace(trace, **where)
    x, y = _axes(panel)
    fig.update_xaxes(x, **where)
    fig.update_yaxes(y, **where)
    for mark in panel.marks:
        line = {"line": {"color": ORANGE, "width": 1.5, "dash": "dash"}, **where}
        note = {"text": mark.text, "font": {"size": 11, "color": ORANGE}}
        inside = {**note, "yanchor": "top" if panel.view == "heatmap" else "bottom"}
        if "x" in mark.across:
            fig.add_vline(
                mark.at,
                annotation=inside,
                annotation_position="top right",
                **line,
            )
        if mark.across == "y":
            fig.add_hline(mark.at, annotation=note, annotation_position="top right", **line)
        if mark.across == "xy":
            fig.add_hline(mark.at, **line)


def _heatmap(panel: Panel, show_scale: bool) -> list[go.Heatmap]:
    rows, columns = panel.axes
    missing = np.isnan(panel.values)
    low, high, scale = _range(panel)
    common = {"x": list(range(len(columns.labels))), "y": list(range(len(rows.labels))), "xgap": 1, "ygap": 1}
    where = [[f"{rows.name} {r}<br>{columns.name} {c}" for c in columns.labels] for r in rows.labels]
    values = go.Heatmap(
        z=_cells(panel.values, missing),
        customdata=where,
        hovertemplate="%{customdata}<br><b>%{z:.4g}</b> " + panel.unit + "<extra></extra>",
        hoverongaps=False,
        zmin=low,
        zmax=high,
        colorscale=scale,
        showscale=show_scale,
        colorbar={"title": {"text": panel.unit, "side": "right"}, "thickness": 12, "outlinewidth": 0},
        **common,
    )
    if not missing.any():
        return [values]
    masked = go.Heatmap(
        z=_cells(np.zeros_like(panel.values), ~missing),
        customdata=where,
        hovertemplate="%{customdata}<br><b>masked</b>: it cannot look ahead<extra></extra>",
        hoverongaps=False,
        colorscale=[[0, MASKED], [1, MASKED]],
        showscale=False,
        **common,
    )
    return [masked, values]


def _cells(values: np.ndarray, empty: np.ndarray) -> list[list[float | None]]:
    """Rows of numbers, None where there is no cell."""
    cells = values.astype(object)
    cells[empty] = None
    rows: list[list[float | None]] = cells.tolist()
    return rows


def _range(panel: Panel) -> tuple[float, float, list[list[Any]]]:
    if panel.scale == "unit":
        return 0.0, 1.0, SEQUENTIAL
    top = float(np.nanmax(np.abs(panel.values))) if panel.values.size else 1.0
    if panel.scale == "signed":
        return -max(top, 1.0), max(top, 1.0), DIVERGING
    return float(np.nanmin(panel.values)), float(np.nanmax(panel.values)), SEQUENTIAL


def _scatter(panel: Panel, show_scale: bool) -> list[go.Scatter]:
    names = [str(label) for label in panel.axes[0].labels]
    trace = go.Scatter(
        x=panel.values[:, 0].tolist(),
        y=panel.values[:, 1].tolist(),
        mode="markers+text",
        text=[html.escape(name) for name in names],
        textposition="top center",
        marker={"size": 8, "color": list(range(len(names))), "colorscale": "Viridis"},
        hovertemplate="<b>%{text}</b><br>(%{x:.4g}, %{y:.4g}) " + panel.unit + "<extra></extra>",
        showlegend=False,
        cliponaxis=False,
    )
    return [trace]


def _lines(panel: Panel, show_scale: bool) -> list[go.Scatter]:
    axis = panel.axes[0]
    trace = go.Scatter(
        x=list(axis.labels),
        y=panel.values.tolist(),
        mode="lines+markers" if len(axis.labels) < 60 else "lines",
        line={"color": BLUE, "width": 2},
        hovertemplate=f"{axis.name} %{{x:,}}<br><b>%{{y:.5g}}</b> {panel.unit}<extra></extra>",
        showlegend=False,
    )
    return [trace]


def _bars(panel: Panel, show_scale: bool) -> list[go.Bar]:
    axis = panel.axes[0]
    trace = go.Bar(
        x=list(axis.labels),
        y=panel.values.tolist(),
        marker={"color": BLUE},
        hovertemplate=f"{axis.name} %{{x}}<br><b>%{{y:.6g}}</b> {panel.unit}<extra></extra>",
        showlegend=False,
    )
    return [trace]


def _axes(panel: Panel) -> tuple[dict[str, Any], dict[str, Any]]:
    if panel.view == "heatmap":
        rows, columns = panel.axes
        x = {"title": {"text": columns.heading}, **_ticks(columns), "constrain": "domain"}
        y = {"title": {"text": rows.heading}, **_ticks(rows), "autorange": "reversed"}
        return x, y
    if panel.view == "scatter":
        first, second = panel.axes[1].labels
        return {"title": {"text": str(first)}, "gridcolor": GRID}, {"title": {"text": str(second)}, "gridcolor": GRID}
    x = {"title": {"text": panel.axes[0].heading}, "gridcolor": GRID}
    y = {"title": {"text": panel.unit}, "gridcolor": GRID}
    if panel.scale == "unit":
        y["range"] = [0, 1.04]
    if panel.scale == "log":
        y["type"] = "log"
    return x, y


def _ticks(axis: Axis) -> dict[str, Any]:
    every = max(1, math.ceil(len(axis.labels) / MAX_TICKS))
    shown = list(range(0, len(axis.labels), every))
    words = [re.sub(r"^(.+)_(\d+)$", r"\1<sub>\2</sub>", html.escape(str(axis.labels[i]))) for i in shown]
    return {"tickmode": "array", "tickvals": shown, "ticktext": words, "tickangle": 0, "showgrid": False}


def _dress(fig: go.Figure) -> go.Figure:
    fig.update_layout(template="plotly_white", font=FONT, hoverlabel={"font": FONT})
    fig.update_xaxes(zeroline=False, automargin=True)
    fig.update_yaxes(zeroline=False, automargin=True)
    return fig
