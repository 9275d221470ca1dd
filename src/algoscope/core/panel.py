"""A labelled array: named axes, a label for every index, a unit, and what 0 and 1 mean."""

from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, Shaped

from algoscope.core.arguments import checked_arguments
from algoscope.core.errors import ArgumentError, UnknownNameError

Label = str | int | float
View = Literal["heatmap", "lines", "bars", "scatter"]
Scale = Literal["unit", "signed", "free", "log"]
Texts = Shaped[np.ndarray, "..."]


@checked_arguments
@dataclass(frozen=True)
class Axis:
    """One axis: its name (`head`, `query`, `step`), a label for each index, and the title that a figure gives it."""

    name: str
    labels: tuple[Label, ...]
    title: str = ""

    @property
    def heading(self) -> str:
        return self.title or self.name


@dataclass(frozen=True)
class Mark:
    """A line drawn across a figure at a value of the last axis (`x`), the one before (`y`), or both.

    Across bars (`y`) it is a threshold: bars on its `strong` side are highlighted.
    """

    at: float
    text: str = ""
    across: Literal["x", "y", "xy"] = "x"
    strong: Literal["above", "below"] = "above"


@checked_arguments
@dataclass(frozen=True)
class Panel:
    """An array with a name, a label for every index, a unit, and what 0 and 1 mean.

    Args:
        name: name of the quantity, unique within a finding.
        axes: one for each dimension of `values`.
        values: the numbers; NaN marks a masked cell.
        unit: of the numbers.
        zero: what 0 means.
        one: what 1 means.
        view: how it is drawn: a heatmap over the last two axes, lines or bars over the last one, a scatter whose last
            axis is (x, y). Leading axes become separate facets.
        scale: of the colours or the ordinate: `unit` is 0 to 1 and never rescaled, `signed` is centred on 0, `log` is
            logarithmic (colours: of 1 + value).
        title: of the figure; by default the name.
        caption: explains the figure to a reader who sees nothing else: what is drawn, over what, and how to read it.
            Its first sentence is shown in bold. Panels drawn side by side may share one caption.
        marks: lines drawn across the figure.
        beside: neighbouring panels with an equal value here are drawn side by side, facet by facet, to be compared.
        shares: panels of a finding with an equal value here, and those drawn side by side, have one range of colours or
            of the ordinate where their unit and scale are equal.
        site: the site that the numbers are about, where there is one.
        quantity: the key of the numbers in JSON.
        span: the smallest range (low, high) of the colour scale or ordinate.
        words: a text for each cell, written inside it where it fits.
        hover: a tooltip text for each cell.

    Example:
        >>> import numpy as np
        >>> import algoscope as ag
        >>> from algoscope.core.panel import Axis
        >>> panel = ag.Panel("share", (Axis("head", ("L0H0", "L0H1")),), np.array([0.25, 0.75]), "share of attention")
        >>> panel.cells()
        [(('L0H0',), 0.25), (('L0H1',), 0.75)]
    """

    name: str
    axes: tuple[Axis, ...]
    values: Float[np.ndarray, "..."]
    unit: str
    zero: str = ""
    one: str = ""
    view: View = "heatmap"
    scale: Scale = "free"
    title: str = ""
    caption: str = ""
    marks: tuple[Mark, ...] = ()
    beside: str = ""
    shares: str = ""
    site: str = ""
    quantity: str = "values"
    span: tuple[float, float] | None = None
    words: Texts | None = None
    hover: Texts | None = None

    def __post_init__(self) -> None:
        expected = tuple(len(axis.labels) for axis in self.axes)
        for what in ("values", "words", "hover"):
            array = getattr(self, what)
            if array is not None and array.shape != expected:
                raise ArgumentError(
                    f"panel {self.name!r}: {what} of shape {list(array.shape)}, but the axes have labels for "
                    f"{list(expected)}"
                )
        if self.values.dtype.kind not in "fiub":
            raise ArgumentError(f"panel {self.name!r}: values must be numbers, not of type {self.values.dtype}")

    @property
    def heading(self) -> str:
        return self.title or self.name

    def axis(self, name: str) -> Axis:
        by_name = {axis.name: axis for axis in self.axes}
        if name not in by_name:
            raise UnknownNameError(f"axis of the panel {self.name!r}", name, by_name)
        return by_name[name]

    def select(self, **indices: int) -> "Panel":
        """The panel at one index of each named axis; those axes disappear."""
        for name, index in indices.items():
            n = len(self.axis(name).labels)
            if not -n <= index < n:
                raise ArgumentError(f"panel {self.name!r}: there is no {name} {index}, it has {n}")
        keep = tuple(axis for axis in self.axes if axis.name not in indices)
        picks = tuple(indices.get(axis.name, slice(None)) for axis in self.axes)
        words, hover = (None if texts is None else texts[picks] for texts in (self.words, self.hover))
        return replace(self, axes=keep, values=self.values[picks], words=words, hover=hover)

    def cells(self) -> list[tuple[tuple[Label, ...], float]]:
        """Every unmasked cell, as (labels, value), in index order."""
        return [
            (tuple(axis.labels[i] for axis, i in zip(self.axes, index, strict=True)), float(value))
            for index, value in np.ndenumerate(self.values)
            if not np.isnan(value)
        ]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; a masked cell is `null`."""
        values = self.values.astype(object)
        values[np.isnan(self.values)] = None
        return {
            "panel": self.name,
            "title": self.title,
            "caption": self.caption,
            "axes": {axis.name: list(axis.labels) for axis in self.axes},
            "axis_titles": {axis.name: axis.title for axis in self.axes if axis.title},
            "unit": self.unit,
            "zero": self.zero,
            "one": self.one,
            "view": self.view,
            "scale": self.scale,
            "beside": self.beside,
            "shares": self.shares,
            "marks": [[mark.at, mark.text, mark.across, mark.strong] for mark in self.marks],
            "site": self.site,
            "span": None if self.span is None else list(self.span),
            **{name: texts.tolist() for name, texts in self._texts()},
            "quantity": self.quantity,
            self.quantity: values.tolist(),
        }

    def _texts(self) -> list[tuple[str, Texts]]:
        """The cell texts that are set, by field name."""
        return [(name, texts) for name, texts in (("words", self.words), ("hover", self.hover)) if texts is not None]

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> "Panel":
        titles = plain["axis_titles"]
        axes = tuple(Axis(name, tuple(labels), titles.get(name, "")) for name, labels in plain["axes"].items())
        values = np.array(plain[plain["quantity"]], dtype=object)
        span = plain.get("span")  # absent from findings of earlier versions
        texts = {name: np.array(plain[name], dtype=object) for name in ("words", "hover") if name in plain}
        return cls(
            name=plain["panel"],
            axes=axes,
            values=np.where(values == None, np.nan, values).astype(float),  # noqa: E711  (elementwise)
            unit=plain["unit"],
            zero=plain["zero"],
            one=plain["one"],
            view=plain["view"],
            scale=plain["scale"],
            beside=plain["beside"],
            shares=plain.get("shares", ""),
            site=plain["site"],
            quantity=plain["quantity"],
            title=plain["title"],
            caption=plain.get("caption", ""),
            marks=tuple(Mark(*mark) for mark in plain["marks"]),
            span=None if span is None else (span[0], span[1]),
            **texts,
        )


def span_of(panels: Iterable[Panel]) -> tuple[float, float]:
    """The lowest and the highest value over panels, including their `span`; (0, 0) where there is no value."""
    panels = list(panels)
    ends = [np.array(panel.span or (), dtype=float) for panel in panels]
    values = np.concatenate([*(panel.values[np.isfinite(panel.values)] for panel in panels), *ends, []])
    return (float(values.min()), float(values.max())) if values.size else (0.0, 0.0)


def on_one_scale(panels: Iterable[Panel]) -> list[Panel]:
    """The panels, with a common span for those that ask for it by `shares` or `beside`, in one unit and on one scale.

    An equal unit alone says nothing: logits of -1 to 1 would be white on a scale of 4,000.
    """
    panels = list(panels)
    groups: dict[Hashable, list[Panel]] = {}
    keys = [(panel.shares or panel.beside or i, panel.unit, panel.scale) for i, panel in enumerate(panels)]
    for key, panel in zip(keys, panels, strict=True):
        groups.setdefault(key, []).append(panel)
    spans = {key: span_of(group) for key, group in groups.items()}
    return [replace(panel, span=spans[key]) for key, panel in zip(keys, panels, strict=True)]
