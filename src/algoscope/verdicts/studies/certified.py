"""Measurements of a study's members: steps to memorise and generalise, and certified wrong answers."""

from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import Any, TypeVar

import numpy as np
from jaxtyping import Float

from algoscope.config import RunConfig
from algoscope.core.finding import ResultTable
from algoscope.core.numbers import percent
from algoscope.core.panel import Axis, Panel
from algoscope.runs.run_folder import Run
from algoscope.verdicts.certification.kept import kept_or_certified
from algoscope.verdicts.studies.plans import Study
from algoscope.verdicts.studies.predictions import AtWidth, Measured, Prediction, compare, late

REACHED = 0.99  # accuracy (whole answers) that counts as learned
PREDICTED = (
    "Predictions, made before the study was run. Each is judged by the medians over the seeds; seeds: how many agree "
    "individually."
)
Value = TypeVar("Value")
Row = Mapping[str, Any]
Members = Sequence[Measured | None]


class Certified:
    """Members are certified, and their verdicts stored in their run folders."""

    kind = "study"

    def __init__(self, plan: Study) -> None:
        self.plan = plan

    def measure(self, run: Run) -> Measured:
        verdict = kept_or_certified(run, by=run.config.task.class_schemes[0])
        checked = verdict["domain"]["checked"]
        return Measured(
            **_arrivals(run),
            loss=run.summary.loss,
            checked=checked,
            wrong=verdict["wrong"],
            accuracy=verdict["accuracy"],
            by_class={row["class"]: row["wrong"] / row["checked"] for row in verdict["by_class"] if row["checked"]},
            by_column={row["meaning"]: row["wrong"] / checked for row in verdict["by_position"]},
            drawn_share=None if checked == verdict["domain"]["size"] else verdict["wrong_share"]["share"],
        )

    def covers(self, prediction: Prediction[Any]) -> bool:
        return not isinstance(prediction, AtWidth)

    def row(self, members: Members, control: Members) -> dict[str, Any]:
        arrived, against = (
            [None if member is None else member.generalised for member in some] for some in (members, control)
        )
        middle = float(np.median([late(step) for step in arrived]))
        return {
            "memorised": [None if member is None else member.memorised for member in members],
            "generalised": arrived,
            "median": middle if np.isfinite(middle) else None,
            "checked": max(_present(_each(members, lambda member: member.checked)), default=None),
            "wrong": _each(members, lambda member: member.wrong),
            "drawn_share": _each(members, lambda member: member.drawn_share),
            "accuracy": _each(members, lambda member: member.accuracy),
            "loss": _each(members, lambda member: member.loss),
            "by_class": _by_name(_each(members, lambda member: member.by_class)),
            "by_column": _by_name(_each(members, lambda member: member.by_column)),
            "outcome": "no clear difference" if members is control else compare(arrived, against),
        }

    def facts(self, config: RunConfig) -> dict[str, Any]:
        return {}


class StepsToGeneralise(Certified):
    """The steps at which members memorise and generalise."""

    about = (
        "A member has memorised at the first logged step at which 99 % of its training answers are right, and "
        "generalised at the first evaluation at which 99 % of the test answers are. A variant generalises sooner "
        "(later) than its control if its median is before (after) every seed of the control; a seed that never "
        "generalises counts as later than all."
    )

    def claim(self, facts: Mapping[str, Any]) -> str:
        rows = facts["rows"]
        steps = [f"{row['variant']} {_step(row['median'])}" for row in rows]
        return f"Median steps: {', '.join(steps)}; {_came_true(rows)}"

    def panels(self, facts: Mapping[str, Any]) -> tuple[Panel, ...]:
        return tuple(_step_panel(what, facts["rows"], facts["seeds"]) for what in ("generalised", "memorised"))

    def tables(self, facts: Mapping[str, Any]) -> tuple[ResultTable, ...]:
        """One row for each variant: the steps of each seed, and the predictions."""
        rows = [
            (
                row["variant"],
                row["meaning"],
                ", ".join(map(_step, row["memorised"])),
                ", ".join(map(_step, row["generalised"])),
                _step(row["median"]),
                row["outcome"] if row["variant"] != row["against"] else "",
                " than ".join(filter(None, (row["expected"], row["against"] if row["expected"] != "never" else ""))),
                row["came_true"],
            )
            for row in facts["rows"]
        ]
        columns = ("variant", "change", "memorised", "generalised", "median", "outcome", "predicted")
        caption = "Steps until 99 % of the training and of the test answers are right, seed by seed."
        return (ResultTable("", (*columns, "came true"), tuple(rows), caption),)


class CertifiedAnswers(Certified):
    """Wrong answers of the members, by class of input and by column of the answer."""

    about = (
        "After training every member is certified: its answers are decoded greedily, for every input where there are "
        "at most 10^8, else for draws. A column counts as wrong where its token is wrong given the right tokens "
        "before it. "
        "Shares are medians over the seeds; the loss is that of the last training step, in nats per position."
    )

    def claim(self, facts: Mapping[str, Any]) -> str:
        rows = facts["rows"]
        drawn = any(_present(row["drawn_share"]) for row in rows)  # of every class alike: a count would mislead
        counts = [(row["variant"], _present(row["drawn_share" if drawn else "wrong"])) for row in rows]
        show = percent if drawn else "{:,.0f}".format
        wrong = [f"{name} {show(float(np.median(some))) if some else 'diverged'}" for name, some in counts]
        of = "share of the domain that is wrong" if drawn else f"wrong of {max(row['checked'] or 0 for row in rows):,}"
        return f"Median {of}: {', '.join(wrong)}; {_came_true(rows)}"

    def panels(self, facts: Mapping[str, Any]) -> tuple[Panel, ...]:
        rows = facts["rows"]
        return (
            _share_panel("class", "by_class", rows),
            _share_panel("column", "by_column", rows),
            _seed_panel(rows, facts["seeds"]),
        )

    def tables(self, facts: Mapping[str, Any]) -> tuple[ResultTable, ...]:
        return _wrong_table(facts["rows"]), _where_table(facts["rows"]), prediction_table(facts["rows"])


# ---------------------------------------------------------------------- one member, several seeds


def _arrivals(run: Run) -> dict[str, int | None]:
    """The steps at which training and test accuracy first reached 99 %."""
    metrics = run.metrics()
    return {
        what: next((row["step"] for row in metrics if row.get(column, 0.0) >= REACHED), None)
        for what, column in (("memorised", "train_accuracy"), ("generalised", "test_accuracy"))
    }


def _each(members: Members, read: Callable[[Measured], Value]) -> list[Value | None]:
    return [None if member is None else read(member) for member in members]


def _by_name(members: Sequence[Mapping[str, float] | None]) -> dict[str, list[float | None]]:
    """For each class or column of any member, the shares by seed."""
    names = dict.fromkeys(name for member in members if member is not None for name in member)
    return {name: [None if member is None else member.get(name) for member in members] for name in names}


def _present(values: Sequence[Value | None]) -> list[Value]:
    return [value for value in values if value is not None]


def _came_true(rows: Sequence[Row]) -> str:
    """For how many of the variants with predictions all of them came true."""
    judged = [row["came_true"] for row in rows if row["came_true"] is not None]
    return f"the predictions for {sum(judged)} of {len(judged)} variants came true"


# ---------------------------------------------------------------------- tables


def _wrong_table(rows: Sequence[Row]) -> ResultTable:
    """One row for each variant: seeds with every input right, wrong inputs, training loss."""
    cells = []
    for row in rows:
        wrong, losses = _present(row["wrong"]), _present(row["loss"])
        middle = f"{median(wrong):,.0f}" if wrong else "diverged"
        spread = f"{min(wrong):,} to {max(wrong):,}" if wrong else ""
        right = f"{wrong.count(0)} of {len(row['wrong'])}"
        cells.append((row["variant"], row["meaning"], right, middle, spread, f"{median(losses):.2g}" if losses else ""))
    checked = max(row["checked"] or 0 for row in rows)
    return ResultTable(
        title="wrong answers",
        columns=("variant", "change", "all right", "wrong, median", "min to max", "loss, median"),
        rows=tuple(cells),
        caption=f"Wrong answers of {checked:,} inputs, over the seeds. All right: seeds without a wrong answer.",
    )


def _where_table(rows: Sequence[Row]) -> ResultTable:
    """One row for each variant: the median share wrong in each class of input, then in each column of the answer."""
    groups = {by: list(dict.fromkeys(name for row in rows for name in row[by])) for by in ("by_class", "by_column")}
    cells = [
        (
            row["variant"],
            *(short_share(median_of(row[by].get(name, ()))) for by, names in groups.items() for name in names),
        )
        for row in rows
    ]
    return ResultTable(
        title="share wrong, median over the seeds, by class of input and by column of the answer",
        columns=("variant", *groups["by_class"], *groups["by_column"]),
        rows=tuple(cells),
        caption="Shares of wrong answers. 0 and 100% are exact.",
    )


def prediction_table(rows: Sequence[Row]) -> ResultTable:
    """One row for each prediction."""
    cells = []
    for row in rows:
        for prediction in row["predictions"]:
            agreeing = f"{sum(_present(prediction['by_seed']))} of {len(prediction['by_seed'])}"
            cells.append((row["variant"], prediction["says"], prediction["came_true"], agreeing))
    return ResultTable("predictions", ("variant", "predicted", "came true", "seeds"), tuple(cells), PREDICTED)


def _step(step: float | None) -> str:
    return "never" if step is None else f"{step:,.0f}"


def median_of(shares: Sequence[float | None]) -> float:
    """The median over the seeds that have one; NaN where none has."""
    present = _present(shares)
    return float(median(present)) if present else float("nan")


def short_share(share: float) -> str:
    """A share, short: `0`, `<.01%`, `0.03%`, `12%`, `>99.9%`, `100%`; 0 and 100 % are exact."""
    if share != share:
        return ""
    if share in (0, 1):
        return "100%" if share else "0"
    percent = 100 * share
    if percent < 0.01:
        return "<.01%"
    if percent > 99.95:
        return ">99.9%"
    decimals = 2 if percent < 1 else 1 if percent < 10 or percent > 99 else 0
    return f"{percent:.{decimals}f}%"


def short_count(count: float) -> str:
    """A count, short: `0`, `213`, `12.3k`, `987k`, `1.00M`."""
    if count < 1e4:
        return f"{count:,.0f}"
    return f"{count / 1e6:.2f}M" if count >= 999_500 else f"{count / 1e3:.3g}k"


# ---------------------------------------------------------------------- panels


def _step_panel(what: str, rows: Sequence[Row], seeds: Sequence[int]) -> Panel:
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
        words=_words(values, _step, missing="never"),
        caption=f"Steps until 99 % of the {side} answers are right. Rows are variants, columns seeds; colours are "
        f"logarithmic; an empty cell never reached 99 %.",
    )


def _share_panel(name: str, key: str, rows: Sequence[Row]) -> Panel:
    labels = tuple(dict.fromkeys(label for row in rows for label in row[key]))
    medians = [[median_of(row[key].get(label, ())) for label in labels] for row in rows]
    values = np.array(medians, dtype=float).reshape(len(rows), len(labels))
    where = {"class": "class of input", "column": "column of the answer"}[name]
    return Panel(
        name=name,
        title=f"wrong answers, by {where}",
        axes=(_variants(rows), Axis(name, labels, where)),
        values=values,
        unit="share wrong",
        zero="none wrong",
        one="all wrong",
        view="heatmap",
        scale="unit",
        words=_words(values, short_share, missing=""),
        caption=f"Share of wrong answers by {where}. Medians over the seeds of each variant; 0 and 100% are exact."
        + (" A column is wrong where its token is wrong given the right tokens before it." if name == "column" else ""),
    )


def _seed_panel(rows: Sequence[Row], seeds: Sequence[int]) -> Panel:
    counts = np.array([[np.nan if n is None else n for n in row["wrong"]] for row in rows], dtype=float)
    return Panel(
        name="seed",
        title="wrong answers by seed (inputs)",
        axes=(_variants(rows), Axis("seed", tuple(seeds))),
        values=counts / np.array([[row["checked"] or 1] for row in rows]),
        unit="share wrong",
        zero="no input wrong",
        one="every input wrong",
        view="heatmap",
        scale="unit",
        words=_words(counts, short_count, missing="diverged"),
        caption="Wrong answers of every seed. Numbers are inputs, colours their share of those checked.",
    )


def _variants(rows: Sequence[Row]) -> Axis:
    return Axis("variant", tuple(row["variant"] for row in rows))


def _words(values: Float[np.ndarray, "variant some"], text_of: Callable[[float], str], missing: str) -> Any:
    words = [[missing if np.isnan(value) else text_of(value) for value in row] for row in values]
    return np.array(words, dtype=object).reshape(values.shape)
