"""A single plot: one facet of a panel as Plotly traces, with axes, ticks, marks, tooltips and colour bar."""

import html
import math
import re
import textwrap
from collections import Counter
from collections.abc import Iterable
from itertools import pairwise
from typing import Any

import numpy as np
import plotly.graph_objects as go
from jaxtyping import Float

from algoscope.core.panel import Axis, Panel, span_of
from algoscope.core.visible import one_line

BLUE, ORANGE, INK, GRID, MASKED = "#2166ac", "#e66100", "#1f2933", "#e4e7eb", "#d3d7dc"
PALE = {BLUE: "#b9d2e8", ORANGE: "#f8d0b0"}  # bars below a threshold
SEQUENTIAL = [[0.0, "#ffffff"], [0.5, "#7fb2dc"], [1.0, "#08306b"]]
DIVERGING = [[0.0, ORANGE], [0.5, "#ffffff"], [1.0, BLUE]]
FONT = {"family": "Inter, Helvetica, Arial, sans-serif", "size": 12, "color": INK}
MAX_TICKS = 26
NARROW, WIDE, AROUND = 480, 2200, 150  # pixels: smallest and largest width of a plot, and its margins
LETTER, WORD, BAR = 6, 42, 11  # pixels: width of a small letter, of a cell with a word, of a bar with its label
LEGIBLE, LONGEST = 3, 24  # fewest letters of a shortened word, most letters of a label
NOTE = "%{customdata}<extra></extra>"


def shown(text: object) -> str:
    """Text for a figure, as it is: nothing in it is HTML, a template (`%{x}`) or a formula (`$x$`) to Plotly, and every
    character that has no sign of its own is made visible, and so are leading and trailing spaces.
    """
    seen = re.sub("^ +| +$", lambda spaces: "\u00b7" * len(spaces.group()), one_line(text))
    return html.escape(seen, quote=False).replace("$", "&#36;").replace("%{", "&#37;{")


def wrapped(text: str, width: int) -> str:
    """Text wrapped to a width in pixels."""
    return "<br>".join(map(shown, textwrap.wrap(one_line(text), max(width // 8, 20))))


# ---------------------------------------------------------------------- sizes


def lines_of(text: str) -> int:
    return text.count("<br>") + 1 if text else 0


def depth_of(panel: Panel) -> int:
    """Height in pixels of the area inside the axes."""
    if panel.view == "heatmap":
        return 34 + 24 * min(len(panel.axes[-2].labels), 20 if panel.words is None else 40)
    return 244 if panel.view == "scatter" else 204


def width_of(panel: Panel) -> int:
    """Width in pixels of a plot with its margins."""
    each = BAR if panel.view == "bars" else 0
    if panel.view == "heatmap" and panel.words is not None:
        each = min(LETTER * _longest(panel.words.ravel()) + 10, WORD)
    return min(max(each * len(panel.axes[-1].labels) + AROUND, NARROW), WIDE)


def _longest(texts: Iterable[object]) -> int:
    return max((len(str(text)) for text in texts), default=0)


def _room(panel: Panel) -> int | None:
    """The width in pixels for labels that must be vertical, as neighbours would overlap; None where they can be
    horizontal.
    """
    if panel.view not in ("heatmap", "bars") or _numeric(panel):
        return None
    labels, room = _bare(panel.axes[-1]), width_of(panel) - AROUND
    widest = max((len(a) + len(b) + 2 for a, b in pairwise(labels)), default=0) * LETTER / 2
    crowded = widest * len(labels) > room
    return room if crowded and any(isinstance(label, str) for label in panel.axes[-1].labels) else None


def _bare(axis: Axis) -> list[str]:
    """The labels as drawn, shortened and without their subscripts."""
    return [re.sub(r"_\d+$", "_", _cut(label, LONGEST)) for label in axis.labels]


def labels_below(panel: Panel) -> int:
    """Extra pixels below a plot for vertical labels; 0 for horizontal ones."""
    return 0 if _room(panel) is None else LETTER * _longest(_bare(panel.axes[-1]))


def _numeric(panel: Panel) -> bool:
    """Whether the axis of lines or bars is numeric."""
    return panel.view in ("lines", "bars") and all(isinstance(label, int | float) for label in panel.axes[-1].labels)


# ---------------------------------------------------------------------- colours


def colour_range(panel: Panel) -> tuple[float, float, list[list[Any]]]:
    """The values at both ends of the colour scale, and the scale. A signed scale with a meaning for 1 includes 1."""
    low, high = span_of([panel])
    if panel.scale == "unit":
        return 0.0, 1.0, SEQUENTIAL
    if panel.scale == "signed":
        most = max(-low, high, 1.0 if panel.one else 0.0) or 1.0
        return -most, most, DIVERGING
    if panel.scale == "log":
        return math.log10(1 + max(low, 0.0)), math.log10(1 + max(high, 1.0)), SEQUENTIAL
    return low, high if high > low else low + 1, SEQUENTIAL


def colour_bar(panel: Panel) -> dict[str, Any]:
    lines = textwrap.wrap(panel.unit, max(depth_of(panel) // LETTER, 12)) or [""]  # fits its height
    unit = {
        "text": "<br>".join(["", *map(shown, lines)]),
        "side": "right",
    }  # the empty first line separates it from the numbers
    bar: dict[str, Any] = {"title": unit, "thickness": 12, "outlinewidth": 0}
    if panel.scale != "log":
        return bar
    ticks = [0, *(10**power for power in range(math.ceil(colour_range(panel)[1]) + 1))]
    return bar | {"tickvals": [math.log10(1 + tick) for tick in ticks], "ticktext": [f"{tick:,}" for tick in ticks]}


def add_plot(fig: go.Figure, panel: Panel, place: tuple[int, int] | None, colour_bar: dict[str, Any] | None) -> None:
    """Draw one facet into the figure, at a (row, column) of a grid or as the only plot."""
    where: dict[str, Any] = {} if place is None else {"row": place[0], "col": place[1]}
    draw = {"scatter": _scatter, "lines": _lines, "bars": _bars}
    for trace in _heatmap(panel, colour_bar) if panel.view == "heatmap" else [draw[panel.view](panel)]:
        fig.add_trace(trace, **where)
    x, y = _axes(panel)
    fig.update_xaxes(x, **where)
    fig.update_yaxes(y, **where)
    if panel.view == "bars" and panel.scale == "signed":
        fig.add_hline(0, line={"color": INK, "width": 1}, **where)
    for mark in panel.marks:
        colour = INK if panel.view == "bars" else ORANGE
        line = {"line": {"color": colour, "width": 1.5, "dash": "dash"}, **where}
        text: dict[str, Any] = {"text": shown(mark.text), "font": {"size": 11, "color": colour}}
        note = {"annotation": text, "annotation_position": "right" if panel.view == "bars" else "top right"}
        if "x" in mark.across:
            text["yanchor"] = "top" if panel.view in ("heatmap", "lines") else "bottom"
            fig.add_vline(mark.at, **note, **line)
        if "y" in mark.across:
            text["y"] = math.log10(mark.at) if y.get("type") == "log" else mark.at  # the line itself takes the value
            fig.add_hline(mark.at, **(note if mark.across == "y" else {}), **line)


def _heatmap(panel: Panel, colour_bar: dict[str, Any] | None) -> list[go.Heatmap]:
    missing = np.isnan(panel.values)
    low, high, scale = colour_range(panel)
    colours = np.log10(1 + panel.values) if panel.scale == "log" else panel.values
    shades = {"zmin": low, "zmax": high, "colorscale": scale, "colorbar": colour_bar}
    shades |= {"showscale": colour_bar is not None, **_words_that_fit(panel)}
    y, x = map(_categories, panel.axes)
    cells = {"x": x, "y": y, "xgap": 1, "ygap": 1, "hoverongaps": False, "customdata": _texts_of_cells(panel)}
    value = "%{customdata[0]:.8~g}" if panel.scale == "log" else "%{z:.8~g}"
    traces = [
        go.Heatmap(
            z=_compact(colours), **cells, **shades, hovertemplate=_note(panel, f"{value}</b> {shown(panel.unit)}")
        )
    ]
    if missing.any():
        reason = "masked</b>: a later position" if panel.axes[-1].name == "key" else "none</b>"
        grey = {"colorscale": [[0, MASKED], [1, MASKED]], "showscale": False, "hovertemplate": _note(panel, reason)}
        traces.insert(0, go.Heatmap(z=_compact(np.where(missing, 0.0, np.nan)), **cells, **grey))
    return traces


def _compact(values: Float[np.ndarray, "row column"]) -> Float[np.ndarray, "row column"]:
    """The same values in as few bytes as hold them exactly; Plotly stores arrays in binary."""
    short = values.astype(np.float32)
    return short if np.array_equal(short, values, equal_nan=True) else values


def _categories(axis: Axis) -> list[str]:
    """A different name for the index of each label, which reads like the label. Zero-width spaces tell equal labels
    apart, and names from numbers, which Plotly would take for indices.
    """
    seen = Counter[str]()
    names = []
    for text in map(shown, axis.labels):
        seen[text] += 1
        names.append(text + "\u200b" * seen[text])
    return names


def _note(panel: Panel, value: str) -> str:
    """The tooltip of every cell, which Plotly fills in: labels, value, and the texts of the cell."""
    row, column = (shown(axis.name) for axis in panel.axes)
    texts = "%{customdata[1]}" if panel.words is not None or panel.hover is not None else ""
    return row + " %{y}<br>" + column + " %{x}<br><b>" + value + texts + "<extra></extra>"


def _texts_of_cells(panel: Panel) -> list[Any] | None:
    """What a tooltip needs of each cell beside its number: the value where colours are logarithmic, and its texts."""
    if panel.scale != "log" and panel.words is None and panel.hover is None:
        return None
    cells = np.empty(panel.values.shape, dtype=object)
    for index, value in np.ndenumerate(panel.values):
        lines = [f"<i>{shown(panel.words[index])}</i>"] if panel.words is not None else []
        lines += [shown(line) for line in str(panel.hover[index]).split("\n")] if panel.hover is not None else []
        cells[index] = (None if np.isnan(value) else float(value), "".join(f"<br>{line}" for line in lines))
    listed: list[Any] = cells.tolist()
    return listed


def _notes(panel: Panel) -> list[str]:
    """The tooltip of each point or bar: its label, its value, and its text."""
    axis, notes = panel.axes[0], []
    for i, value in enumerate(panel.values):
        note = "none</b>" if np.isnan(value) else f"{value:.8g}</b> {shown(panel.unit)}"
        lines = [f"{shown(axis.name)} {shown(axis.labels[i])}", f"<b>{note}"]
        lines += [f"<i>{shown(panel.words[i])}</i>"] if panel.words is not None else []
        lines += [shown(line) for line in str(panel.hover[i]).split("\n")] if panel.hover is not None else []
        notes.append("<br>".join(lines))
    return notes


def _words_that_fit(panel: Panel) -> dict[str, Any]:
    """The words in the cells, shortened to fit; none where fewer than `LEGIBLE` letters fit."""
    if panel.words is None or not panel.words.size:
        return {}
    rows, columns = panel.words.shape
    room = (width_of(panel) - AROUND) // (columns * LETTER)
    if room < min(_longest(panel.words.ravel()), LEGIBLE) or depth_of(panel) < 12 * rows:
        return {}
    words = [[shown(_cut(word, room)) for word in row] for row in panel.words]
    return {"text": words, "texttemplate": "%{text}", "textfont": {"size": 10}}


def _cut(text: object, letters: int) -> str:
    line = one_line(text)
    return line if len(line) <= letters else line[: letters - 1] + "\u2026"


def _scatter(panel: Panel) -> go.Scatter:
    names = [shown(label) for label in panel.axes[0].labels]
    return go.Scatter(
        x=panel.values[:, 0].tolist(),
        y=panel.values[:, 1].tolist(),
        mode="markers+text",
        text=names,
        textposition="top center",
        marker={"size": 8, "color": list(range(len(names))), "colorscale": "Viridis"},
        hovertemplate="<b>%{text}</b><br>(%{x:.4g}, %{y:.4g}) " + shown(panel.unit) + "<extra></extra>",
        cliponaxis=False,
    )


def _lines(panel: Panel) -> go.Scatter:
    labels = panel.axes[0].labels
    return go.Scatter(
        x=list(labels) if _numeric(panel) else list(range(len(labels))),
        y=panel.values.tolist(),
        mode="lines+markers" if len(labels) < 60 else "lines",
        line={"color": BLUE, "width": 2},
        customdata=_notes(panel),
        hovertemplate=NOTE,
    )


def _bars(panel: Panel) -> go.Bar:
    labels = panel.axes[0].labels
    colours = [ORANGE if panel.scale == "signed" and value < 0 else BLUE for value in panel.values]
    for mark in [mark for mark in panel.marks if mark.across == "y"]:
        reach = panel.values >= mark.at if mark.strong == "above" else panel.values <= mark.at
        colours = [colour if strong else PALE[colour] for colour, strong in zip(colours, reach, strict=True)]
    return go.Bar(
        x=list(labels) if _numeric(panel) else list(range(len(labels))),
        y=panel.values.tolist(),
        marker={"color": colours},
        customdata=_notes(panel),
        hovertemplate=NOTE,
    )


def _axes(panel: Panel) -> tuple[dict[str, Any], dict[str, Any]]:
    if panel.view == "heatmap":
        rows, columns = panel.axes
        frame = {"showline": True, "mirror": True, "linecolor": GRID}  # visible where all cells are white
        across = {
            "title": {"text": shown(columns.heading)},
            **_ticks(columns, _room(panel)),
            **frame,
            "constrain": "domain",
        }
        down = {"title": {"text": shown(rows.heading)}, **_ticks(rows), **frame, "ticklabelstandoff": 4}
        return across | {"type": "category"}, down | {"type": "category", "autorange": "reversed"}
    if panel.view == "scatter":
        first, second = panel.axes[1].labels
    else:
        first, second = panel.axes[0].heading, panel.unit
    x: dict[str, Any] = {"title": {"text": shown(first)}, "gridcolor": GRID}
    y: dict[str, Any] = {"title": {"text": shown(second)}, "gridcolor": GRID}
    if panel.view == "scatter":
        return x, y
    if not _numeric(panel):
        x |= _ticks(panel.axes[0], _room(panel))
    if panel.scale == "unit":
        y["range"] = [0, 1.04]
    if panel.scale == "log":
        y |= {"type": "log", "exponentformat": "power"}
    if panel.view == "bars" and panel.scale == "signed":
        reached = [0, *span_of([panel]), *(mark.at for mark in panel.marks if mark.across == "y")]
        spare = 0.08 * (max(reached) - min(reached) or 1)
        y["range"] = [min(reached) - spare, max(reached) + spare]
    return x, y


def _ticks(axis: Axis, room: int | None = None) -> dict[str, Any]:
    """Labels at the indices of the cells or bars, thinned where they are many; vertical where `room` (pixels) is
    given.
    """
    most = MAX_TICKS if room is None else room // BAR
    indices = list(range(0, len(axis.labels), max(1, math.ceil(len(axis.labels) / most))))
    words = [shown(_cut(axis.labels[i], LONGEST)) for i in indices]
    texts = [re.sub(r"^(.+)_(\d+)$", r"\1<sub>\2</sub>", word) for word in words]
    style = {"tickangle": 0} if room is None else {"tickangle": 270, "tickfont": {"size": 10}}
    beside = len(axis.labels) / 5_000  # a tick so near a cell that a tooltip on the cell reads the label, not the tick
    return {
        "tickmode": "array",
        "tickvals": [i + beside for i in indices],
        "ticktext": texts,
        **style,
        "showgrid": False,
    }


def dress(fig: go.Figure) -> go.Figure:
    hover = {"font": FONT, "bgcolor": "#ffffff", "bordercolor": INK}
    fig.update_layout(template="plotly_white", font=FONT, hoverlabel=hover, showlegend=False)
    fig.update_xaxes(zeroline=False, automargin=True)
    fig.update_yaxes(zeroline=False, automargin=True)
    return fig
