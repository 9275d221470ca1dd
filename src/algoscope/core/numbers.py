"""Number formatting for sentences, tables and figures."""

import math

import numpy as np
from jaxtyping import Float, Shaped

WORDS = ["no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]
MOST_PLACES = 6  # decimals of a percentage; smaller ones are written with an exponent


def decimals(value: float, places: int) -> str:
    """A number with `places` decimals, never `-0.00`; the empty string for NaN."""
    return "" if math.isnan(value) else f"{round(value, places) + 0.0:.{places}f}"


def in_words(n: int) -> str:
    """A small number as a word, a larger one in digits."""
    return WORDS[n] if n < len(WORDS) else f"{n:,}"


def how_many(first: int, last: int, least: int, most: int) -> str:
    """The range `first` to `last` in words, of a number that can be `least` to `most`: two, at most two, two to four,
    two or more.
    """
    if first == last:
        return in_words(first)
    if last == most:
        return f"{in_words(first)} or more"
    return f"at most {in_words(last)}" if first == least else f"{in_words(first)} to {in_words(last)}"


def percent(share: float) -> str:
    """A share as `2.04 %`: three significant digits of it or of what is missing to all, whichever is less, so that only
    none is written `0 %` and only all `100 %`.
    """
    less = 100 * min(share, 1 - share)
    places = 2 - math.floor(math.log10(less)) if less > 0 else 0
    if places > MOST_PLACES and share < 0.5:
        return f"{100 * share:.2e} %"
    text = f"{100 * share:.{max(places, 0)}f}"
    return f"{text.rstrip('0').rstrip('.') if '.' in text else text} %"


def in_cells(values: Float[np.ndarray, "..."], places: int) -> Shaped[np.ndarray, "..."]:
    """The text of every cell of a figure, for the `words` of a panel."""
    return np.vectorize(lambda value: decimals(value, places), otypes=[object])(values)
