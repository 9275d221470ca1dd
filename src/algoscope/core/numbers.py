"""How a number is written in a sentence, or in a cell of a table or a figure."""

import math

import numpy as np
from jaxtyping import Float, Shaped


def decimals(value: float, places: int) -> str:
    """A number with that many decimals, never `-0.00`; nothing where there is no value (NaN)."""
    return "" if math.isnan(value) else f"{round(value, places) + 0.0:.{places}f}"


def in_cells(values: Float[np.ndarray, "..."], places: int) -> Shaped[np.ndarray, "..."]:
    """The text of every cell of a figure, for the `words` of a panel."""
    return np.vectorize(lambda value: decimals(value, places), otypes=[object])(values)
