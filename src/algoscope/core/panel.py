"""A labelled array: named axes, a label for every index, a unit, and what 0 and 1 mean."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from jaxtyping import Float

Label = str | int | float
View = Literal["heatmap", "lines", "bars", "scatter"]
Scale = Literal["unit", "signed", "free", "log"]


@dataclass(frozen=True)
class Axis:
    """One axis: its name in the project's legend, a label for each index, and the title a figure gives it."""

    name: str
    labels: tuple[Label, ...]
    title: str = ""

    @property
    def heading(self) -> str:
        return self.title or self.name


@dataclass(frozen=True)
class Mark:
    """A line drawn across a figure at a value of the last axis (`x`), the one before (`y`), or both."""

    at: float
    text: str = ""
    across: Literal["x", "y", "xy"] = "x"


@dataclass(frozen=True)
class Panel:
    """Numbers with names. `values` has one dimension for each axis; NaN means "does not exist" (masked).

    `view` says how it is drawn: a heatmap over the last two axes, lines or bars over the last one, a
    scatter whose last axis is (x, y). Leading axes become separate facets. `scale` fixes the colours or
    the ordinate: `unit` is 0 to 1 and never rescaled, `signed` is centred on 0, `log` is logarithmic. Neighbouring
    panels with the same `beside` are drawn next to each other, facet by facet. `site` names the place in the model that
    the numbers are about, where there is one.
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
    marks: tuple[Mark, ...] = ()
    beside: str = ""
    site: str = ""
    quantity: str = "values"  # what JSON calls the numbers

    def __post_init__(self) -> None:
        expected = tuple(len(axis.labels) for axis in self.axes)
        assert self.values.shape == expected, f"{self.name}: values {self.values.shape}, labels {expected}"

    @property
    def heading(self) -> str:
        return self.title or self.name

    def axis(self, name: str) -> Axis:
        return next(axis for axis in self.axes if axis.name == name)

    def select(self, **indices: int) -> "Panel":
        """The panel at one index of each named axis; those axes disappear."""
        keep = tuple(axis for axis in self.axes if axis.name not in indices)
        picks = tuple(indices.get(axis.name, slice(None)) for axis in self.axes)
        return replace(self, axes=keep, values=self.values[picks])

    def cells(self) -> list[tuple[tuple[Label, ...], float]]:
        """Every cell that exists, as (its labels, its value), in index order."""
        return [
            (tuple(axis.labels[i] for axis, i in zip(self.axes, index, strict=True)), float(value))
            for index, value in np.ndenumerate(self.values)
            if not np.isnan(value)
        ]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; a cell that does not exist is `null`."""
        values = self.values.astype(object)
        values[np.isnan(self.values)] = None
        return {
            "panel": self.name,
            "title": self.title,
            "axes": {axis.name: list(axis.labels) for axis in self.axes},
            "axis_titles": {axis.name: axis.title for axis in self.axes if axis.title},
            "unit": self.unit,
            "zero": self.zero,
            "one": self.one,
            "view": self.view,
            "scale": self.scale,
            "beside": self.beside,
            "marks": [[mark.at, mark.text, mark.across] for mark in self.marks],
            "site": self.site,
            "quantity": self.quantity,
            self.quantity: values.tolist(),
        }

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> "Panel":
        titles = plain["axis_titles"]
        axes = tuple(Axis(name, tuple(labels), titles.get(name, "")) for name, labels in plain["axes"].items())
        values = np.array(plain[plain["quantity"]], dtype=object)
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
            site=plain["site"],
            quantity=plain["quantity"],
            title=plain["title"],
            marks=tuple(Mark(*mark) for mark in plain["marks"]),
        )
