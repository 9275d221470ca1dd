"""Quantities of panels: unit, meaning of 0 and 1, and colour scale, defined once."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from algoscope.core.panel import Axis, Panel, Scale


@dataclass(frozen=True)
class Measure:
    """A quantity that panels show. `key` is its name in JSON."""

    unit: str
    zero: str = ""
    one: str = ""
    scale: Scale = "free"
    key: str = "values"

    def panel(
        self, name: str, axes: Sequence[Axis], values: Float[np.ndarray, "..."], caption: str, **drawing: Any
    ) -> Panel:
        """A panel of this quantity; `drawing` holds the other arguments of `Panel`."""
        return Panel(
            name,
            tuple(axes),
            values,
            self.unit,
            self.zero,
            self.one,
            scale=self.scale,
            quantity=self.key,
            caption=caption,
            **drawing,
        )


PROBABILITY = Measure("probability", "ruled out", "certain", "unit")
ADDED_LOGITS = Measure("logits, target over rivals", "adds nothing", scale="signed", key="contribution")
RECOVERED = Measure("share of the gap recovered", "as the corrupt run", "as the clean run", "signed", "recovered")
ACCURACY = Measure("share of inputs right", "every input wrong", "every input right", "unit", "accuracy")
DIRECTIONS = Measure("directions", "a zero matrix", "one direction")
