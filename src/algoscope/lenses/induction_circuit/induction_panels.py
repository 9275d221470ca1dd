"""What the induction lens draws."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from algoscope.core.panel import Axis, Mark, Panel, Scale, Texts
from algoscope.lenses.induction_circuit.head_ablations import Nats
from algoscope.lenses.induction_circuit.head_scores import ATTENTION, FEW, WRITING, Rows
from algoscope.lenses.parameters.qk_ov_circuits import ENTRIES, Circuits

SMALL = 12  # columns whose numbers are written into the cells


def panels_of(
    circuits: Circuits,
    rows: Rows,
    facts: Mapping[str, Any],
    composition: Float[np.ndarray, "entry sender receiver"],
    lines: Mapping[str, Nats],
) -> tuple[Panel, ...]:
    """Every panel of the finding; circuits token by token only where the tokens are few and there is a pair."""
    return (
        _head_panel(facts, "attention", ATTENTION),
        _head_panel(facts, "writing", WRITING),
        _position_panel(rows, lines),
        *_ablation_panels(facts),
        *_heard_panels(facts),
        *_composition_panels(circuits, composition),
        *_circuit_panels(circuits, facts["pair"], rows),
    )


def _head_panel(facts: Mapping[str, Any], name: str, scores: Sequence[str]) -> Panel:
    heads = facts["heads"]
    values = np.array([[np.nan if head[score] is None else head[score] for score in scores] for head in heads])
    looks = name == "attention"
    return Panel(
        name=name,
        title="where each head looks" if looks else "what each head writes",
        axes=(Axis("head", tuple(head["name"] for head in heads)), Axis("score", tuple(scores))),
        values=values,
        unit="mean share of attention" if looks else "score",
        zero="never there"
        if looks
        else "as often the token looked at as not (copying), neither (eigenvalues), never (top1)",
        one="only there" if looks else "raises the token looked at, and only that (top1: it most, whichever it is)",
        view="heatmap",
        scale="unit" if looks else "signed",
        beside="heads",
        site="pattern" if looks else "result",
        words=_numbers(values, 2),
    )


def _position_panel(rows: Rows, lines: Mapping[str, Nats]) -> Panel:
    """The loss position by position, over the rows with the longest block."""
    longest = int(rows.period.max())
    those = (rows.period == longest).cpu()
    values = np.stack([nats[those].mean(dim=0).numpy() for nats in lines.values()])
    return Panel(
        name="loss by position",
        title=f"loss without (blocks of {longest})",
        axes=(Axis("without", tuple(lines)), Axis("position", tuple(range(values.shape[1])), "position that predicts")),
        values=values,
        unit="nats",
        zero="sure of the right token",
        view="lines",
        marks=(Mark(rows.start + longest - 0.5, "determined from here", "x"),),
    )


def _ablation_panels(facts: Mapping[str, Any]) -> tuple[Panel, ...]:
    rows, kinds = facts["ablations"], tuple(facts["kinds"])
    names = tuple(dict.fromkeys(row["without"] for row in rows))
    found = {(row["without"], row["kind"]): row for row in rows}
    panels = []
    for measure, title in (("later_increase", "where it is determined"), ("first_increase", "where it is not")):
        values = np.array([[found[name, kind][measure] for kind in kinds] for name in names])
        panels.append(
            _grid(
                measure.replace("_", " "),
                f"increase of the loss, {title}",
                (Axis("without", names, "taken away"), Axis("kind", kinds, "put in its place")),
                values,
                "nats more a token",
                zero="as without ablation",
                beside="ablations",
            )
        )
    return tuple(panels)


def _heard_panels(facts: Mapping[str, Any]) -> tuple[Panel, ...]:
    """What is left of the receiver's induction score, entry by entry and sender by sender."""
    rows = facts["heard"]
    if not rows:
        return ()
    senders, entries = (tuple(dict.fromkeys(row[key] for row in rows)) for key in ("sender", "entry"))
    found = {(row["entry"], row["sender"]): row["induction"] for row in rows}
    values = np.array([[found[entry, sender] for sender in senders] for entry in entries])
    return (
        _grid(
            "heard",
            f"induction score of {facts['receiver']} when one entry hears another row",
            (Axis("entry", entries, "entry of the head"), Axis("sender", senders, "heard from another row")),
            values,
            "mean share of attention",
            scale="unit",
            zero="it no longer looks at what followed before",
            one="it looks only there",
        ),
    )


def _composition_panels(circuits: Circuits, scores: Float[np.ndarray, "entry sender receiver"]) -> tuple[Panel, ...]:
    cfg = circuits.cfg
    if cfg.n_layers == 1:
        return ()
    names = tuple(f"L{layer}H{head}" for layer in range(cfg.n_layers) for head in range(cfg.n_heads))
    axes = (
        Axis("entry", ENTRIES),
        Axis("sender", names[: -cfg.n_heads], "head that writes"),
        Axis("receiver", names[cfg.n_heads :], "head that reads"),
    )
    values = scores[:, : -cfg.n_heads, cfg.n_heads :] - circuits.chance[0]
    return (_grid("composition", "composition", axes, values, "score above chance", zero="as Gaussian matrices"),)


def _circuit_panels(circuits: Circuits, pair: Mapping[str, Any] | None, rows: Rows) -> tuple[Panel, ...]:
    if pair is None:
        return ()
    sender, receiver = (_head(pair[which]) for which in ("earlier", "induction"))
    panels = []
    if len(circuits.tokens) <= FEW:
        tokens = tuple(circuits.subject.to_str_tokens(circuits.tokens))
        said = (Axis("token", tokens, "token looked at"), Axis("said", tokens, "token raised"))
        ov = circuits.ov(*receiver).cpu().numpy()
        ov = ov - ov.mean(axis=1, keepdims=True)
        panels.append(_grid("OV circuit", f"OV circuit of {pair['induction']}", said, ov, "logits, centred", "nothing"))
        if pair["entry"] == "k":
            axes = (Axis("query", tokens, "token of the query"), Axis("key", tokens, "token before the key"))
            qk = circuits.matching(sender, receiver).cpu().numpy()
            panels.append(
                _grid("QK circuit", f"{pair['induction']} on what {pair['earlier']} wrote", axes, qk, "score")
            )
    n = rows.read.shape[1]
    scores = circuits.pointing(sender, receiver, n) if pair["entry"] == "q" else None
    if scores is not None and n <= FEW:
        places = tuple(range(n))
        axes = (
            Axis("pos", places, f"position {pair['earlier']} looked at"),
            Axis("key", places, "position of the key"),
        )
        title = f"queries of {pair['induction']} by what {pair['earlier']} wrote"
        panels.append(_grid("position circuit", title, axes, scores.cpu().numpy(), "score of the key"))
    return tuple(panels)


def _head(name: str) -> tuple[int, int]:
    layer, head = name[1:].split("H")
    return int(layer), int(head)


def _grid(
    name: str, title: str, axes: tuple[Axis, ...], values: Float[np.ndarray, "..."], unit: str, zero: str = "", *,
    scale: Scale = "signed", one: str = "", beside: str = "",
) -> Panel:  # fmt: skip
    """A heatmap, with its numbers in the cells where they are few."""
    words = _numbers(values, 2) if values.shape[-1] <= SMALL else None
    return Panel(name, axes, values, unit, zero, one, "heatmap", scale, title, beside=beside, words=words)


def _numbers(values: Float[np.ndarray, "..."], places: int) -> Texts:
    said = np.vectorize(lambda v: "" if np.isnan(v) else f"{round(v, places) + 0.0:.{places}f}", otypes=[object])
    return said(values)
