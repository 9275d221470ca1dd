"""Panels and tables of the census: heads by seed, distances, solutions by threshold, attention, predictors."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from algoscope.core.finding import ResultTable
from algoscope.core.panel import Axis, Panel
from algoscope.tasks.base import Task
from algoscope.verdicts.census.head_matching import Profile

BY_TOKEN = {
    "effects": "Effect of each head on each answer token. Rows are heads (matched with the typical run's) and answer "
    "tokens, columns are runs; the value is the share of inputs whose token changes when the head's output is replaced "
    "by its mean.",
    "deciding": "Attention to the prompt tokens that determine each answer token. Rows are heads (matched with the "
    "typical "
    "run's) and answer tokens, columns are runs; the value is the mean attention to the prompt tokens whose change "
    "most often changes this answer token (in a sum, the digits of its column).",
}
SHOWN = 4  # solutions whose attention is drawn
CHANGED = ("share of answers changed", "the token never changes under ablation", "it changes on every input")
ATTENDED = ("attention", "none of the attention", "all of it")


def census_panels(
    facts: Mapping[str, Any], apart: Float[np.ndarray, "run run"], profiles: Sequence[Profile], task: Task
) -> tuple[Panel, ...]:
    """The panels, runs by solution: `heads` [slot run], `effects` and `deciding` [part run], `distance` [run run],
    `thresholds`, the attention of one run of each of the first solutions, and the strongest predictors.
    """
    rows = facts["runs"]
    runs = Axis("run", tuple(f"{row['seed']} ({row['solution']})" for row in rows), "seed (solution)")
    return (
        _heads(rows, runs),
        _by_token(rows, runs, "effects", "answer tokens changed by ablating each head", CHANGED),
        _by_token(rows, runs, "deciding", "attention to the tokens that determine the answer token", ATTENDED),
        Panel(
            name="distance",
            title="distance between runs",
            axes=(Axis("other", runs.labels, runs.title), runs),
            values=apart,
            unit="distance",
            zero="identical behaviour on every input",
            one="nothing in common",
            view="heatmap",
            caption="Distance between every two runs. 0 = identical behaviour on every input, 1 = nothing in common. "
            "Runs "
            "are sorted by solution, the number in brackets: blocks of small distances along the diagonal are "
            "solutions.",
        ),
        _by_threshold(facts["by_threshold"]),
        *_attention(rows, profiles, task),
        *_prediction(facts["predicted"]),
    )


def _heads(rows: Sequence[Mapping[str, Any]], runs: Axis) -> Panel:
    slots = tuple(head["slot"] for head in rows[0]["heads"])
    by_slot = [[row["heads"][i] for row in rows] for i in range(len(slots))]
    return Panel(
        name="heads",
        title="largest effect of each head, and its role (matched with the typical run's)",
        axes=(Axis("slot", slots, "head of the typical run"), runs),
        values=np.array([[max(head["effects"]) for head in heads] for heads in by_slot]),
        unit="share of answers changed",
        zero="no answer token changes when it is ablated",
        one="one answer token changes on every input",
        view="heatmap",
        scale="unit",
        words=np.array([[head["role"] for head in heads] for heads in by_slot], dtype=object),
        caption="Role and largest effect of each head in every run. Columns are runs, rows the heads of the typical "
        "run, each with the best-matching head of every run. The word is the head's role; the colour is the share of "
        "inputs whose "
        "answer token changes when the head's output is replaced by its mean, for the token that depends on it most.",
    )


def _by_token(
    rows: Sequence[Mapping[str, Any]], runs: Axis, what: str, title: str, meaning: tuple[str, str, str]
) -> Panel:
    """One of the facts of heads that have a number for each answer token."""
    parts = tuple(f"{head['slot']} token {i + 1}" for head in rows[0]["heads"] for i in range(len(head[what])))
    values = np.array([[x for head in row["heads"] for x in head[what]] for row in rows], dtype=float).T
    unit, zero, one = meaning
    axes = (Axis("part", parts, "head and answer token"), runs)
    return Panel(what, axes, values, unit, zero, one, view="heatmap", scale="unit", title=title, caption=BY_TOKEN[what])


def _by_threshold(counts: Sequence[Mapping[str, Any]]) -> Panel:
    return Panel(
        name="thresholds",
        title="number of solutions by threshold",
        axes=(Axis("threshold", tuple(f"{row['threshold']:g}" for row in counts), "threshold"),),
        values=np.array([row["solutions"] for row in counts], dtype=float),
        unit="solutions",
        zero="none",
        view="bars",
        caption="Number of solutions by the threshold, the largest distance within a solution. Well-separated "
        "clusters give one number over a wide range of thresholds; a continuum does not.",
    )


def _attention(rows: Sequence[Mapping[str, Any]], profiles: Sequence[Profile], task: Task) -> list[Panel]:
    """Mean attention of the first run of each of the most frequent solutions."""
    firsts: dict[int, int] = {}
    for i, row in enumerate(rows):
        firsts.setdefault(row["solution"], i)
    example = [task.vocabulary[token] for token in task.edge_inputs()[0, :-1].tolist()]
    keys = tuple(f"{token}_{i}" for i, token in enumerate(example))
    at = Axis("key", keys, f"key, such as in {''.join(example)}")
    panels = []
    for solution, i in list(firsts.items())[:SHOWN]:
        size = sum(row["solution"] == solution for row in rows)
        names = [head["name"][1:].split("H") for head in rows[i]["heads"]]
        order = [int(layer) * profiles[i].n_heads + int(head) for layer, head in names]
        values = profiles[i].attention[order].mean(axis=1)
        rows_of = tuple(f"{head['slot']} token {q + 1}" for head in rows[i]["heads"] for q in range(values.shape[1]))
        panels.append(
            Panel(
                name=f"attention, solution {solution}",
                title=f"solution {solution} ({size} runs), seed {rows[i]['seed']}: mean attention",
                axes=(Axis("part", rows_of, "head and answer token"), at),
                values=values.reshape(-1, values.shape[-1]),
                unit="attention",
                zero="none of the attention",
                one="all of it",
                view="heatmap",
                scale="unit",
                caption="Mean attention from the answer positions, for one run of each solution. Rows are heads and "
                "the answer token that they help to predict, columns are keys, labelled with the tokens of an edge "
                "case.",
            )
        )
    return panels


def _prediction(predicted: Mapping[str, Any]) -> list[Panel]:
    panels = []
    for outcome in ("jump", "solution"):
        strongest = predicted[outcome].get("strongest")
        if strongest:
            panels.append(
                Panel(
                    name=f"predicts the {outcome}",
                    title=f"the {outcome}: the strongest of {predicted[outcome]['features']} numbers of the first "
                    f"steps (corrected p of the first {strongest[0]['p']:.2g})",
                    axes=(Axis("feature", tuple(row["feature"] for row in strongest), "number @ step"),),
                    values=np.array([row["strength"] for row in strongest]),
                    unit="rank correlation" if outcome == "jump" else "share of variance between solutions",
                    zero="no association",
                    one="determines the outcome",
                    view="bars",
                    scale="signed",
                    caption=f"Early features most strongly associated with the {outcome}. Each label ends with its "
                    f"step; p-values are corrected for the number of features tested.",
                )
            )
    return panels


# ---------------------------------------------------------------------- tables


def census_tables(facts: Mapping[str, Any]) -> tuple[ResultTable, ...]:
    """The runs by solution, the controls, and the early predictors."""
    return _runs_table(facts["runs"]), _controls_table(facts["controls"]), _prediction_table(facts["predicted"])


def _runs_table(rows: Sequence[Mapping[str, Any]]) -> ResultTable:
    slots = [head["slot"] for head in rows[0]["heads"]]
    cells = [
        (
            row["run"],
            row["wrong"],
            "never" if row["jump"] is None else row["jump"],
            "" if row["loss"] is None else f"{row['loss']:.2g}",
            row["solution"],
            f"{row['from_typical']:.3f}",
            *(f"{head['name']} {head['role']}" for head in row["heads"]),
        )
        for row in rows
    ]
    return ResultTable(
        title="",
        columns=("run", "wrong", "jump", "loss", "solution", "from typical", *slots),
        rows=tuple(cells),
        caption="The runs, by solution. `jump` is the first logged step with half of the answers right, `from typical` "
        "the distance from the typical run (the one with the smallest summed distance); the last columns name the "
        "head that matches each head of the typical run, with its role.",
    )


def _controls_table(controls: Mapping[str, Any]) -> ResultTable:
    untrained = controls["untrained"]
    rows = (
        ("largest distance of a run from its copy with permuted heads and neurons", f"{controls['permuted']:.2g}"),
        ("distinct solutions with those copies among the runs", controls["with_copies"]),
        ("median distance of a run from its untrained model", "" if untrained is None else f"{untrained:.3f}"),
    )
    return ResultTable("controls", ("control", "value"), rows)


def _prediction_table(predicted: Mapping[str, Any]) -> ResultTable:
    rows = []
    for outcome in ("jump", "solution"):
        result = predicted[outcome]
        best = result["strongest"][0] if "strongest" in result else {}
        rows.append(
            (
                outcome,
                result["verdict"],
                best.get("feature"),
                best.get("strength"),
                best.get("p"),
                result.get("error"),
                result.get("trivial_error"),
                f"{result['shuffled_claims']} of {result['shuffled_trials']}" if best else None,
            )
        )
    columns = ("outcome", "verdict", "strongest feature @ step", "strength", "corrected p", "leave-one-out error")
    return ResultTable(
        title="prediction from early features",
        columns=(*columns, "baseline", "shuffled outcomes predicted"),
        rows=tuple(rows),
        caption="Does any early feature predict the outcome? Errors are leave-one-out errors: in steps for the jump "
        "(baseline: the median of the other runs), as a share of runs for the solution (baseline: the most frequent "
        "one). Shuffled outcomes are the control: how many of them the same procedure claims to predict.",
    )
