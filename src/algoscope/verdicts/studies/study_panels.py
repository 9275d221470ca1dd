"""What a study draws: when its members arrived, or what they get wrong."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from algoscope.core.panel import Axis, Panel
from algoscope.verdicts.studies.tables import median_of, short_count, short_share

Rows = Sequence[Mapping[str, Any]]


def step_panels(rows: Rows, seeds: Sequence[int]) -> tuple[Panel, ...]:
    """Steps until the members generalised, and until they memorised [variant seed]; NaN: never, or diverged."""
    return tuple(_steps(what, rows, seeds) for what in ("generalised", "memorised"))


def _steps(what: str, rows: Rows, seeds: Sequence[int]) -> Panel:
    values = np.array([[np.nan if step is None else step for step in row[what]] for row in rows], dtype=float)
    side = {"generalised": "test", "memorised": "training"}[what]
    return Panel(
        name=what,
        title=f"steps until {side} accuracy reaches 99 %",
        axes=(_variants(rows), Axis("seed", tuple(seeds))),
        values=values,
        unit="steps",
        zero="at once",
        view="heatmap",
        scale="log",
        words=_words(values, lambda step: f"{step:,.0f}", missing="never"),
    )


def answer_panels(rows: Rows, seeds: Sequence[int]) -> tuple[Panel, ...]:
    """The median share wrong by class and by column [variant class], [variant column], and each seed's with its wrong
    inputs in words [variant seed]; NaN: diverged, or no such class.
    """
    counts = np.array([[np.nan if n is None else n for n in row["wrong"]] for row in rows], dtype=float)
    by_seed = Panel(
        name="seed",
        title="wrong, seed by seed (inputs)",
        axes=(_variants(rows), Axis("seed", tuple(seeds))),
        values=counts / np.array([[row["checked"] or 1] for row in rows]),
        unit="share wrong",
        zero="no input wrong",
        one="every input wrong",
        view="heatmap",
        scale="unit",
        words=_words(counts, short_count, missing="diverged"),
    )
    return _shares("class", "by_class", rows), _shares("column", "by_column", rows), by_seed


def _shares(name: str, key: str, rows: Rows) -> Panel:
    labels = tuple(dict.fromkeys(label for row in rows for label in row[key]))
    values = np.array([[median_of(row[key].get(label, ())) for label in labels] for row in rows], dtype=float)
    return Panel(
        name=name,
        title={"class": "wrong, by class of input", "column": "wrong, by column of the answer"}[name],
        axes=(_variants(rows), Axis(name, labels)),
        values=values.reshape(len(rows), len(labels)),
        unit="share wrong",
        zero="none of these wrong",
        one="all of these wrong",
        view="heatmap",
        scale="unit",
        words=_words(values.reshape(len(rows), len(labels)), short_share, missing=""),
    )


def _variants(rows: Rows) -> Axis:
    return Axis("variant", tuple(row["variant"] for row in rows))


def _words(values: Float[np.ndarray, "variant some"], said: Any, missing: str) -> Any:
    words = [[missing if np.isnan(value) else said(value) for value in row] for row in values]
    return np.array(words, dtype=object).reshape(values.shape)
