"""Number formatting for sentences, tables and figures."""

import math

import numpy as np
from jaxtyping import Float, Shaped


def decimals(value: float, places: int) -> str:
    """A number with `places` decimals, never `-0.00`; the empty string for NaN."""
    return "" if math.isnan(value) else f"{round(value, places) + 0.0:.{places}f}"


def in_cells(values: Float[np.ndarray, "..."], places: int) -> Shaped[np.ndarray, "..."]:
    """The text of every cell of a figure, for the `words` of a panel."""
    return np.vectorize(lambda value: decimals(value, places), otypes=[object])(values)
