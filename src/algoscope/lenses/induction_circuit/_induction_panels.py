"""Panels and tables of the induction lens."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from algoscope.core.finding import ResultTable
from algoscope.core.panel import Axis, Mark, Panel, Scale
from algoscope.lenses.heads.head_panels import ATTENTION as SHARE
from algoscope.lenses.heads.head_panels import head_names, numbers
from algoscope.lenses.induction_circuit.head_ablations import Nats
from algoscope.lenses.induction_circuit.head_scores import ATTENTION, FEW, WRITING, Rows
from algoscope.lenses.parameters.qk_ov_circuits import ENTRIES, Circuits

SMALL = 12  # columns up to which numbers are written into the cells


def panels_of(
    circuits: Circuits,
    rows: Rows,
    facts: Mapping[str, Any],
    composition: Float[np.ndarray, "entry sender receiver"],
    lines: Mapping[str, Nats],
) -> tuple[Panel, ...]:
    """Every panel of the finding; circuits by token only for few tokens and if there is a pair."""
    return (
        *_head_panels(facts),
        _position_panel(rows, facts, lines),
        *_ablation_panels(facts),
        *_input_panels(facts),
        *_circuit_panels(circuits, facts["pair"], rows),
        *_composition_panels(circuits, facts, composition),
    )


def _head_panels(facts: Mapping[str, Any]) -> tuple[Panel, ...]:
    heads, chance = facts["heads"], facts["chance"]
    names = Axis("head", tuple(head["name"] for head in heads))
    caption = (
        f"Attention and output of each head. Attention is a mean over {facts['inputs']['n']} rows: "
        "induction and duplicate-token over queries whose token has occurred before, the others over all queries. "
        "Uniform "
        f"attention would give induction {chance['induction']:.2f} and duplicate-token "
        f"{chance['duplicate-token']:.2f}. Copying: the share of the raised logits that goes to the attended token (1 "
        f"= all, -1 = none); eigenvalues and top1 measure the same on the OV circuit alone, directly from the "
        f"embedding."
    )

    def scores(of: Sequence[str]) -> Float[np.ndarray, "head score"]:
        return np.array([[np.nan if head[score] is None else head[score] for score in of] for head in heads])

    attention, writing = scores(ATTENTION), scores(WRITING)
    return (
        Panel(
            "attention", (names, Axis("score", ATTENTION)), attention, title="mean attention of each head",
            beside="heads", site="pattern", words=numbers(attention), caption=caption, **SHARE,
        ),
        Panel(
            "writing", (names, Axis("score", WRITING)), writing, title="output of each head", unit="score",
            zero="as often the token attended to as not (copying), neither (eigenvalues), never (top1)",
            one="raises the token attended to, and only that (top1: it most, whichever it is)",
            scale="signed", beside="heads", site="result", words=numbers(writing), caption=caption,
        ),
    )  # fmt: skip


def _position_panel(rows: Rows, facts: Mapping[str, Any], lines: Mapping[str, Nats]) -> Panel:
    """The loss by position, over the rows with the longest block."""
    longest, losses = int(rows.period.max()), facts["losses"]
    those = (rows.period == longest).cpu()
    values = np.stack([nats[those].mean(dim=0).numpy() for nats in lines.values()])
    caption = (
        "The loss by position, without ablation and with the named heads ablated (replaced by their mean). Right of "
        "the dashed line the next token is determined by the earlier tokens."
    )
    if losses["floor"]:
        caption += (
            f" There the best possible predictor has {losses['floor']['later']:.4f} nats a token on these rows, and "
            f"{losses['floor']['first']:.3f} left of it; this model has {losses['later']:.4f} and "
            f"{losses['first']:.3f}."
        )
    return Panel(
        name="loss by position",
        title=f"loss with heads ablated (blocks of {longest})",
        axes=(Axis("ablated", tuple(lines)), Axis("position", tuple(range(values.shape[1])), "position that predicts")),
        values=values,
        unit="nats",
        zero="certain of the right token",
        view="lines",
        marks=(Mark(rows.start + longest - 0.5, "determined from here", "x"),),
        caption=caption,
    )


def _ablation_panels(facts: Mapping[str, Any]) -> tuple[Panel, ...]:
    rows, kinds = facts["ablations"], tuple(facts["kinds"])
    names = tuple(dict.fromkeys(row["without"] for row in rows))
    by_name = {(row["without"], row["kind"]): row for row in rows}
    caption = (
        "The increase of the loss when heads are ablated. Rows are ablated heads or groups of them, columns the "
        "replacement: zeros, the mean over the other rows, another row's output. Left: where the next token is "
        "determined by earlier tokens; right: where it is not. Ablating a head of the circuit raises the left one; "
        "other heads are controls."
    )
    panels = []
    for measure, title in (("later_increase", "where it is determined"), ("first_increase", "where it is not")):
        values = np.array([[by_name[name, kind][measure] for kind in kinds] for name in names])
        panels.append(
            _grid(
                measure.replace("_", " "),
                f"increase of the loss, {title}",
                (Axis("ablated", names), Axis("replacement", kinds)),
                values,
                "nats more a token",
                zero="as without ablation",
                beside="ablations",
                caption=caption,
            )
        )
    return tuple(panels)


def _input_panels(facts: Mapping[str, Any]) -> tuple[Panel, ...]:
    """The receiver's induction score after path ablation, by entry and sender."""
    rows = facts["heard"]
    if not rows:
        return ()
    senders, entries = (tuple(dict.fromkeys(row[key] for row in rows)) for key in ("sender", "entry"))
    by_path = {(row["entry"], row["sender"]): row["induction"] for row in rows}
    values = np.array([[by_path[entry, sender] for sender in senders] for entry in entries])
    return (
        _grid(
            "heard",
            f"induction score of {facts['receiver']} with one input from another row",
            (Axis("entry", entries, "input of the head"), Axis("sender", senders, "earlier head, from another row")),
            values,
            SHARE["unit"],
            scale="unit",
            zero="no attention to the token after the previous occurrence",
            one="all attention there",
            caption="Dependence of the induction head on earlier heads. Its induction score when its queries (q) or "
            "its "
            "keys (k) receive one earlier head's output on another row; a low number means that this path carries "
            f"the information. Without a replacement the score is {rows[0]['before']:.2f}.",
        ),
    )


def _composition_panels(
    circuits: Circuits, facts: Mapping[str, Any], scores: Float[np.ndarray, "entry sender receiver"]
) -> tuple[Panel, ...]:
    cfg, chance = circuits.cfg, facts["composition"]["chance"]
    if cfg.n_layers == 1:
        return ()
    names = head_names(cfg)
    axes = (
        Axis("entry", ENTRIES),
        Axis("sender", names[: -cfg.n_heads], "head that writes"),
        Axis("receiver", names[cfg.n_heads :], "head that reads"),
    )
    caption = (
        "Composition scores. The overlap of a head's output with the input of a later head's queries, keys and "
        f"values, above Gaussian matrices of these shapes ({chance['mean']:.3f} \u00b1 "
        f"{chance['standard_deviation']:.3f}). It shows what the weights allow, not what the model uses."
    )
    values = scores[:, : -cfg.n_heads, cfg.n_heads :] - chance["mean"]
    zero = "as Gaussian matrices"
    return (_grid("composition", "composition", axes, values, "score above chance", zero=zero, caption=caption),)


def _circuit_panels(circuits: Circuits, pair: Mapping[str, Any] | None, rows: Rows) -> tuple[Panel, ...]:
    if pair is None:
        return ()
    sender, receiver = (_head(pair[which]) for which in ("earlier", "induction"))
    panels = []
    if len(circuits.tokens) <= FEW:
        tokens = tuple(circuits.subject.to_str_tokens(circuits.tokens))
        if pair["entry"] == "k":
            panels.append(
                _grid(
                    "QK circuit",
                    f"QK circuit of {pair['induction']}, its keys by way of {pair['earlier']}",
                    (Axis("query", tokens, "token of the query"), Axis("key", tokens, "token before the key")),
                    circuits.matching(sender, receiver).cpu().numpy(),
                    "score",
                    caption="The QK circuit of the pair, from the weights alone. Rows are tokens of the query, columns "
                    "the token before the key, as the earlier head wrote it there; a strong diagonal matches a token "
                    "with its previous occurrence.",
                )
            )
        ov = circuits.ov(*receiver).cpu().numpy()
        panels.append(
            _grid(
                "OV circuit",
                f"OV circuit of {pair['induction']}",
                (Axis("token", tokens, "token attended to"), Axis("output", tokens, "token raised")),
                ov - ov.mean(axis=1, keepdims=True),
                "logits, centred",
                "nothing",
                caption="The OV circuit of the induction head, from the weights alone. Rows are tokens attended to, "
                "columns the tokens whose logits that raises; a strong diagonal copies.",
            )
        )
    n = rows.read.shape[1]
    scores = circuits.pointing(sender, receiver, n) if pair["entry"] == "q" else None
    if scores is not None and n <= FEW:
        positions = tuple(range(n))
        pointed = "" if pair["pointing"] is None else (
            f" it is the next position for {pair['pointing']:.0%} of the positions of a first block but its last."
        )  # fmt: skip
        panels.append(
            _grid(
                "position circuit",
                f"QK circuit of {pair['induction']} on positions, its queries by way of {pair['earlier']}",
                (
                    Axis("pos", positions, f"position that {pair['earlier']} attended to"),
                    Axis("key", positions, "position of the key"),
                ),
                scores.cpu().numpy(),
                "score of the key",
                caption="The QK circuit on positions. Which key a query scores highest when the earlier head attended "
                f"to a position:{pointed or ' one row for each.'}",
            )
        )
    return tuple(panels)


def _head(name: str) -> tuple[int, int]:
    layer, head = name[1:].split("H")
    return int(layer), int(head)


def _grid(
    name: str, title: str, axes: tuple[Axis, ...], values: Float[np.ndarray, "..."], unit: str, zero: str = "", *,
    scale: Scale = "signed", one: str = "", beside: str = "", caption: str = "",
) -> Panel:  # fmt: skip
    """A heatmap, with its numbers in the cells where they are few."""
    words = numbers(values) if values.shape[-1] <= SMALL else None
    return Panel(name, axes, values, unit, zero, one, "heatmap", scale, title, caption, beside=beside, words=words)


# ---------------------------------------------------------------------- tables


def tables_of(facts: Mapping[str, Any]) -> tuple[ResultTable, ...]:
    """The rules with their values, and for a copying task the scores by length of block."""
    rules = ResultTable(
        "Rules",
        ("rule", "holds", "value", "meaning"),
        tuple(
            (
                rule,
                outcome["holds"],
                "cannot be told" if outcome["value"] is None else round(outcome["value"], 3),
                facts["rules"][rule],
            )
            for rule, outcome in facts["evidence"].items()
        ),
        "All must hold for an induction pair or a pointer pair.",
    )
    if not facts["by_length"]:
        return (rules,)
    measures = {
        "induction": "induction score",
        "chance": "by chance",
        "later": "loss, determined",
        "first": "loss, not determined",
    }
    lengths = ResultTable(
        "By length of the block",
        ("block", "trained", *measures.values()),
        tuple(
            (row["length"], row["trained"], *(round(row[name], 3) for name in measures)) for row in facts["by_length"]
        ),
        "A head that attends by content to the token after the previous occurrence does so for any block length. "
        "Losses in nats a token.",
    )
    return rules, lengths
