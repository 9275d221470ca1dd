"""What the census draws: heads by seed, distances, solutions by threshold, where the heads look, what foretells."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from algoscope.core.panel import Axis, Panel
from algoscope.tasks.base import Task
from algoscope.verdicts.census.head_matching import Signature

SHOWN = 4  # solutions whose attention is drawn
CHANGED = ("share of answers changed", "the token never changes without the head", "it changes on every input")
LOOKED = ("attention", "none of the attention", "all of it")


def census_panels(
    facts: Mapping[str, Any], apart: Float[np.ndarray, "run run"], signed: Sequence[Signature], task: Task
) -> tuple[Panel, ...]:
    """The panels, runs by solution: `heads` [slot run], `effects` and `deciding` [part run], `distance` [run run],
    `thresholds`, the attention of one run of each of the first solutions, and what foretells most.
    """
    rows = facts["runs"]
    runs = Axis("run", tuple(f"{row['seed']} ({row['solution']})" for row in rows), "seed (solution)")
    return (
        _heads(rows, runs),
        _by_token(rows, runs, "effects", "which answer tokens depend on which head", CHANGED),
        _by_token(rows, runs, "deciding", "which head looks at the tokens that decide the answer's", LOOKED),
        Panel(
            name="distance",
            title="how differently each two runs work",
            axes=(Axis("other", runs.labels, runs.title), runs),
            values=apart,
            unit="distance",
            zero="every part works alike",
            one="nothing in common",
            view="heatmap",
        ),
        _by_threshold(facts["by_threshold"]),
        *_looks(rows, signed, task),
        *_foretelling(facts["foretold"]),
    )


def _heads(rows: Sequence[Mapping[str, Any]], runs: Axis) -> Panel:
    slots = tuple(head["slot"] for head in rows[0]["heads"])
    by_slot = [[row["heads"][i] for row in rows] for i in range(len(slots))]
    return Panel(
        name="heads",
        title="what depends on each head, and its role (matched with the typical run's)",
        axes=(Axis("slot", slots, "head of the typical run"), runs),
        values=np.array([[max(head["effects"]) for head in heads] for heads in by_slot]),
        unit="share of answers changed",
        zero="no answer token changes without it",
        one="one answer token changes on every input",
        view="heatmap",
        scale="unit",
        words=np.array([[head["role"] for head in heads] for heads in by_slot], dtype=object),
    )


def _by_token(
    rows: Sequence[Mapping[str, Any]], runs: Axis, what: str, title: str, meaning: tuple[str, str, str]
) -> Panel:
    """One of the facts of heads that have a number for each answer token."""
    parts = tuple(f"{head['slot']} token {i + 1}" for head in rows[0]["heads"] for i in range(len(head[what])))
    values = np.array([[x for head in row["heads"] for x in head[what]] for row in rows], dtype=float).T
    unit, zero, one = meaning
    axes = (Axis("part", parts, "head and answer token"), runs)
    return Panel(what, axes, values, unit, zero, one, view="heatmap", scale="unit", title=title)


def _by_threshold(counts: Sequence[Mapping[str, Any]]) -> Panel:
    return Panel(
        name="thresholds",
        title="solutions by the distance that still counts as the same",
        axes=(Axis("threshold", tuple(f"{row['threshold']:g}" for row in counts), "threshold"),),
        values=np.array([row["solutions"] for row in counts], dtype=float),
        unit="solutions",
        zero="none",
        view="bars",
    )


def _looks(rows: Sequence[Mapping[str, Any]], signed: Sequence[Signature], task: Task) -> list[Panel]:
    """Mean attention of the first run of each of the most frequent solutions."""
    firsts: dict[int, int] = {}
    for i, row in enumerate(rows):
        firsts.setdefault(row["solution"], i)
    example = [task.vocabulary[token] for token in task.edge_cases()[0, :-1].tolist()]
    keys = tuple(f"{token}_{i}" for i, token in enumerate(example))
    at = Axis("key", keys, f"looks at, such as in {''.join(example)}")
    panels = []
    for solution, i in list(firsts.items())[:SHOWN]:
        size = sum(row["solution"] == solution for row in rows)
        own = [head["name"] for head in rows[i]["heads"]]
        order = [int(name[1 : name.index("H")]) * signed[i].n_heads + int(name[name.index("H") + 1 :]) for name in own]
        values = signed[i].looks[order].mean(axis=1)
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
            )
        )
    return panels


def _foretelling(foretold: Mapping[str, Any]) -> list[Panel]:
    panels = []
    for outcome in ("jump", "solution"):
        strongest = foretold[outcome].get("strongest")
        if strongest:
            panels.append(
                Panel(
                    name=f"foretells the {outcome}",
                    title=f"the {outcome}: the strongest of {foretold[outcome]['features']} numbers of the first steps "
                    f"(corrected p of the first {strongest[0]['p']:.2g})",
                    axes=(Axis("feature", tuple(row["feature"] for row in strongest), "number @ step"),),
                    values=np.array([row["strength"] for row in strongest]),
                    unit="rank correlation" if outcome == "jump" else "share of variance between solutions",
                    zero="says nothing",
                    one="says all",
                    view="bars",
                    scale="signed",
                )
            )
    return panels
