"""Tables and panels of a verdict."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Int

from algoscope.core.finding import Cell, ResultTable
from algoscope.core.numbers import percent
from algoscope.core.panel import Axis, Panel

SHOWN = 100  # classes in a panel or a table; of more, those of lowest accuracy
BINS = np.arange(-20.0, 60.5, 0.5)  # of the margins, in logits; the outer bins include all values beyond
ENDS = ("low", "high")


def result_tables(facts: Mapping[str, Any]) -> tuple[ResultTable, ...]:
    """The tables of a verdict: accuracy and margins, classes, positions, counterexamples."""
    positions = ResultTable(
        title="by token of the answer",
        columns=("position", "token", "wrong", "first wrong"),
        rows=tuple((row["position"], row["meaning"], row["wrong"], row["first_wrong"]) for row in facts["by_position"]),
        caption="Errors by answer token. `wrong` counts the inputs whose token is wrong given the right tokens before "
        "it (teacher forcing), `first wrong` those whose first error it is; these add up to all wrong inputs.",
    )
    tables = [_accuracy_table(facts), _class_table(facts), positions]
    if shown := facts["counterexamples"]:
        tables.append(
            ResultTable(
                title=f"{len(shown)} of {facts['wrong']:,} counterexamples",
                columns=("input", "right answer", "model's answer"),
                rows=tuple((row["input"], row["expected"], row["got"]) for row in shown),
                caption="Inputs whose greedy answer is wrong.",
            )
        )
    return tuple(tables)


def _accuracy_table(facts: Mapping[str, Any]) -> ResultTable:
    bounds = zip(ENDS, facts["interval_95"] or (), strict=False)
    rows = (
        ("accuracy", f"{facts['accuracy']:.6%}"),
        *((f"95 % interval: {end}", f"{bound:.6%}") for end, bound in bounds),
        ("smallest margin (logits)", f"{facts['min_margin']:.4g}"),
        ("float error (logits)", "unknown" if facts["float_error"] is None else f"{facts['float_error']:.2g}"),
        ("rounding", _rounding(facts)),
    )
    return ResultTable("accuracy and margins", ("quantity", "value"), rows)


def _rounding(facts: Mapping[str, Any]) -> str:
    """Whether rounding can change an answer, in words."""
    if facts["robust"]:
        return "rounding can change no answer"
    if facts["wrong"]:
        return "margin negative: some answers are wrong"
    if facts["float_error"] is None:
        return "float error unknown, so rounding could change an answer"
    return "margin within twice the float error: rounding could change an answer"


def _class_table(facts: Mapping[str, Any]) -> ResultTable:
    """The classes, with sizes and intervals where not all was checked; of very many, those with a wrong answer."""
    rows = [row for row in facts["by_class"] if row["checked"]]
    wrong = [row for row in rows if row["wrong"]]
    title, shown = "by class of input", rows
    if len(rows) > SHOWN:
        shown, least = wrong[:SHOWN], min(row["checked"] for row in rows)
        title = f"{len(rows):,} classes, at least {least:,} inputs of each; {len(wrong):,} with wrong answers"
    bounded = any(row["interval_95"] for row in rows)
    columns = ("class", "meaning", *(("inputs", "of the domain") * bounded), "checked", "wrong", "accuracy")
    cells: list[tuple[Cell, ...]] = []
    for row in shown:
        weight = None if row["weight"] is None else percent(row["weight"])
        size, ends = ((row["size"], weight), row["interval_95"] or (None, None)) if bounded else ((), ())
        accuracy = f"{1 - row['wrong'] / row['checked']:.4%}"
        bounds = (None if end is None else f"{end:.4%}" for end in ends)
        cells.append((row["class"], row["meaning"], *size, row["checked"], row["wrong"], accuracy, *bounds))
    return ResultTable(
        title=title,
        columns=(*columns, *((f"95 % interval: {end}" for end in ENDS) if bounded else ())),
        rows=tuple(cells),
        caption="Wrong answers by class of input."
        + (
            " `inputs` is the exact size of a class, `of the domain` its share of all inputs; its interval bounds the "
            "accuracy over all of it." * bounded
        ),
    )


def class_panel(facts: Mapping[str, Any]) -> Panel:
    seen = [row for row in facts["by_class"] if row["checked"]]
    title, drawn = "accuracy by class of input", "The number after a class is the number of inputs checked."
    if len(seen) > SHOWN:
        drawn += f" Only the {SHOWN} classes of lowest accuracy, of {len(seen):,}, are drawn."
        seen = sorted(seen, key=lambda row: -row["wrong"] / row["checked"])[:SHOWN]
        title += f", the {SHOWN} lowest"
    return Panel(
        name="accuracy",
        title=title,
        axes=(Axis("class", tuple(f"{row['class']} ({row['checked']:,})" for row in seen), "class (inputs checked)"),),
        values=np.array([1 - row["wrong"] / row["checked"] for row in seen]),
        unit="share of inputs right",
        zero="every input of the class wrong",
        one="every input of the class right",
        view="bars",
        scale="unit",
        caption="Accuracy by class of input. Each bar is the share of the checked inputs of a class whose greedy "
        f"answer is right in every token. {drawn} The table explains the classes.",
    )


def margin_panel(histogram: Int[np.ndarray, "margin"]) -> Panel:
    used = histogram.nonzero()[0]
    low, high = int(used[0]), int(used[-1]) + 1
    centres = (BINS[:-1] + 0.25)[low:high].tolist()
    return Panel(
        name="margins",
        title="distribution of the margin",
        axes=(Axis("margin", tuple(centres), "margin: right token minus the largest other (logits)"),),
        values=histogram[low:high].astype(float),
        unit="inputs",
        zero="no input has this margin",
        view="bars",
        caption="Distribution of the margin over the checked inputs. The margin of an input is the smallest over its "
        "answer tokens of the right token's logit minus the largest other one. Inputs right of 0 are answered "
        "correctly; at a margin of 1 the right token is e = 2.7 times as probable as the next. Values beyond "
        f"{BINS[0]:g} and {BINS[-1]:g} are counted in the outermost bars.",
    )
