"""Panels and tables of the clock lens."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from algoscope.core.finding import Cell, ResultTable
from algoscope.core.panel import Axis, Panel
from algoscope.lenses.modular_arithmetic.circles import (
    FORMS,
    MOST_CIRCLES,
    READINGS,
    Cube,
    IsolatedCircle,
    by_distance,
    circle_axis,
    circle_panel,
)
from algoscope.tasks.groups.group_tables import Structure

ABOUT = (
    "Numbers on circles can be added modulo n in two ways. A clock multiplies the angles of its operands: its logits "
    "are cos w(a+b-c). A pizza adds the operands as vectors and measures the length of the sum along many directions, "
    "|cos w(a-b)/2| cos w(a+b-c): it is symmetric in the operands, and weak where they are opposite on the circle. "
    "Two tests separate them, over all pairs: whether a logit has the same gradient with respect to both operands' "
    "embeddings, and the form of the logits when only one circle is left in the embeddings. A circle is measured in "
    "the plane of one frequency. A model that has not learned its task gets no verdict; where one circle at a time "
    "explains little of the logits, the test does not apply; what fits neither is called `neither`. Definitions: "
    "Zhong et al., arXiv 2306.17844, where circles are pairs of principal components, which mix circles of equal size."
)
BINS = 40  # of cosines
LITTLE = 0.1  # of the logits of single circles: what explains less tells nothing


def panels_of(
    structure: Structure,
    cube: Cube,
    cosines: Sequence[Float[np.ndarray, "_triple"]],
    isolated: Sequence[IsolatedCircle],
) -> list[Panel]:
    """Isolated circles, gradients, the logit of the right answer, and the circles themselves."""
    if not isolated:
        return [_gradients(cosines), _right_logit(cube)]
    return [
        _fits(isolated[:MOST_CIRCLES]),
        _gradients(cosines),
        _right_logit(cube),
        circle_panel("circles", structure.first.tolist(), [one.circle for one in isolated]),
    ]


def _fits(isolated: Sequence[IsolatedCircle]) -> Panel:
    return Panel(
        name="circles alone",
        title="logits of one circle at a time",
        axes=(circle_axis([one.circle for one in isolated]), Axis("form", tuple(FORMS), "form of the logits")),
        values=np.array([list(one.fits.values()) for one in isolated]),
        unit="share of the logits' variance",
        zero="the form explains nothing",
        one="the form explains all",
        view="heatmap",
        scale="unit",
        words=np.array([[f"{value:.3f}" for value in one.fits.values()] for one in isolated], dtype=object),
        hover=np.array([[FORMS[name] for name in one.fits] for one in isolated], dtype=object),
        caption=(
            "The model with one circle at a time. All but one frequency of its number embeddings is ablated (only "
            "their mean is left); a cell is the share of the variance of the logits that a form explains. "
            "Clock: cos w(a+b-c). Pizza: |cos w(a-b)/2| cos w(a+b-c), or its full formula. Accompanying "
            "circles, of twice the frequency, are strong where a pizza is weak. The forms overlap: a true clock is 81 "
            "% a pizza, and the other way round."
        ),
    )


def _gradients(cosines: Sequence[Float[np.ndarray, "_triple"]]) -> Panel:
    edges = np.linspace(-1, 1, BINS + 1)
    trained_and_not = (cosines[0], np.concatenate(cosines[1:]))
    counts = [np.histogram(values.clip(-1, 1), edges)[0] / max(1, len(values)) for values in trained_and_not]
    middles = tuple(np.round((edges[:-1] + edges[1:]) / 2, 3).tolist())
    return Panel(
        name="gradients",
        title="gradients with respect to the two operands",
        axes=(Axis("model", ("this model", "untrained")), Axis("cosine", middles, "cosine between the gradients")),
        values=np.stack(counts),
        unit="share of triples",
        zero="no triple has this cosine",
        one="all triples have it",
        view="bars",
        scale="unit",
        caption=(
            "Do both operands have the same effect on a logit? Cosine between the gradients of a logit with respect "
            f"to the embeddings of the first and the second operand, over {len(cosines[0]):,} random triples (a, b, "
            "c). In a pizza all are near 1, "
            "in a clock they are not. For comparison untrained models of the same shape: constant attention makes the "
            "gradients equal before anything is learned."
        ),
    )


def _right_logit(cube: Cube) -> Panel:
    number = tuple(range(len(cube)))
    right = by_distance(cube)
    tenth = abs(float(right.mean())) / 10  # smaller differences are drawn pale
    return Panel(
        name="right logit",
        title="logit of the right answer",
        axes=(
            Axis("distance", number, "difference of the operands, b - a"),
            Axis("first", number, "first operand, a"),
        ),
        values=right - right.mean(),
        unit="logits above the mean",
        zero="the mean over all pairs",
        view="heatmap",
        scale="signed",
        span=(-tenth, tenth),
        caption=(
            "The logit of the right answer for every pair, less its mean over all pairs. Rows are differences of the "
            "operands. Horizontal stripes: the logit depends on the difference alone, as in pizzas."
        ),
    )


def tables_of(facts: Mapping[str, Any]) -> list[ResultTable]:
    """The tests with their bounds, and the circles where there are any."""
    tests = ResultTable(
        title="Tests of clock and pizza",
        columns=("test", "value", "bound", "holds"),
        rows=tuple(_test_rows(facts)),
        caption=(
            "Circularity: the share of the variance of the number embeddings that circles explain, in the planes of "
            "their frequencies. Symmetricity: 1 = both operands have the same effect. One circle at a time, and "
            "cosines: shares of the logits' variance. Distance irrelevance: 0 = the right answer's logit depends on "
            "the difference of the operands alone."
        ),
    )
    circles = [
        (
            row["frequency"],
            row["variance"],
            row["ratio"],
            row["fits"]["clock"],
            max(row["fits"]["pizza"], row["fits"]["whole pizza"]),
            row["fits"]["accompanying"],
            row["reads_as"],
        )
        for row in facts["circles"]
    ]
    if not circles:
        return [tests]
    return [
        tests,
        ResultTable(
            title="Circles",
            columns=("frequency", "share of embedding variance", "ratio of axes", *READINGS, "reads as"),
            rows=tuple(circles),
            caption=(
                "The number embeddings in the planes of single frequencies, largest first: the share of the "
                "embeddings' variance that a circle explains, the ratio of the axes of the ellipse (1 = a circle), and "
                "the share of the logits' variance that each form explains with only this frequency left."
            ),
        ),
    ]


def _test_rows(facts: Mapping[str, Any]) -> list[tuple[Cell, ...]]:
    bounds, isolated, tests = facts["bounds"], facts["isolated"], facts["tests"]
    untrained = [value for value in facts["untrained"] if value is not None]
    alone = {f"one circle at a time: {name}": isolated[name] for name in READINGS}
    clock, pizza, accompanying = alone
    gradient = "the same" if tests["same gradient"] else "different" if tests["different gradients"] else "in between"
    return [
        ("accuracy over all pairs", facts["accuracy"], f"at least {bounds['accurate']:g}", tests["learned"]),
        (
            "circularity of the embeddings",
            facts["circularity"],
            f"at least {bounds['circular']:g}: on circles; not used in the verdict",
            tests["numbers on circles"],
        ),
        (
            "gradient symmetricity s_g",
            facts["symmetricity"],
            f"the same: at least {bounds['alike']:g}; different: below {bounds['apart']:g}",
            gradient,
        ),
        ("standard error of s_g", facts["symmetricity_error"], "", ""),
        ("s_g of untrained models, mean", sum(untrained) / len(untrained) if untrained else "none", "a control", ""),
        (
            clock,
            alone[clock],
            f"a clock: more than the pizza, and at least {LITTLE:g}",
            tests["one circle is a clock"],
        ),
        (
            pizza,
            alone[pizza],
            f"a pizza: more than the clock, and with the accompanying at least {bounds['fits']:g}",
            tests["one circle is a pizza"],
        ),
        (accompanying, alone[accompanying], "", ""),
        (
            "clock, or pizza with accompanying",
            max(isolated["clock"], isolated["pizza"] + isolated["accompanying"]),
            f"at least {bounds['fits']:g}; with less only a clock can be told",
            tests["one circle is explained"],
        ),
        (
            "cosines of the logits' frequencies together",
            facts["cosines"],
            f"at least {bounds['fits']:g}",
            tests["logits are cosines"],
        ),
        (
            "distance irrelevance q",
            "none: constant logit" if facts["distance_irrelevance"] is None else facts["distance_irrelevance"],
            "not used in the verdict",
            "",
        ),
    ]
