"""Panels and tables of attention by input part."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from algoscope.config import ModelConfig
from algoscope.core.finding import ResultTable
from algoscope.core.panel import Axis, Panel
from algoscope.lenses.heads.head_panels import ATTENTION, ENTROPY, INPUTS, MOST_ROWS, head_axes, head_names, numbers


def panels_of(
    cfg: ModelConfig,
    facts: Mapping[str, Any],
    shares: Float[np.ndarray, "input layer head part"],
    entropies: Float[np.ndarray, "input layer head"],
    shown: Float[np.ndarray, "layer head text part"],
) -> tuple[Panel, ...]:
    """The figures of the lens: single inputs, means over the inputs, and means by layer."""
    heads, covered = facts["heads"], facts["covered"]
    grid, names = head_axes(cfg), Axis("head", head_names(cfg))
    layer = Axis("layer", tuple(f"L{number}" for number in range(cfg.n_layers)))
    part = Axis("part", tuple(facts["parts"]), "part of the input")
    texts = Axis("input", tuple(one["input"] for one in facts["inputs"]))
    agreement = np.array([head["agreement"] for head in heads]).reshape(cfg.n_layers, cfg.n_heads)
    named = np.array([head["class"] for head in heads], dtype=object).reshape(agreement.shape)
    mean, deviation = (values.reshape(len(heads), -1) for values in (shares.mean(axis=0), shares.std(axis=0)))
    entropy, by_layer = entropies.mean(axis=0), shares.mean(axis=(0, 2)).T
    varied = numbers(mean) + "\u00b1" + numbers(deviation)
    every = "all" if covered["method"] == "exhaustive" else "a random"
    bounds = facts["thresholds"]
    single = (
        f"Attention of each head on {len(texts.labels)} inputs. Rows are inputs, each followed by the model's own "
        f"answer, columns are parts of the input; the query is {facts['queries'][-1]!r}, an answer position. The "
        "numbers of a row add up to 1; `itself` is the query's own position."
    )
    over_inputs = (
        f"The same over {every} {covered['inputs']:,} inputs. Left: the mean share of attention on each part, and its "
        "standard deviation over the inputs. Right: the class of each head; darker: more single inputs give that "
        f"class. A head is named after a part from a share that is {bounds['part']:.0%} of the way "
        f"from uniform attention to all attention; else it is spread from {bounds['spread']:.0%} of the largest "
        "entropy, attends to both operands, or is mixed."
    )
    by_depth = (
        "Entropy of attention by layer. 1 = uniform over the visible keys, 0 = a single key. Left: mean over the "
        "heads of "
        "each "
        "layer; right: each head." + _fall_in_words(facts["broad_early_sharp_late"])
    )
    depth = "Attention on each part by layer. Means over the heads of a layer and the inputs; the parts add up to 1."
    return (
        _heatmap("attention", "", (*grid, texts, part), shown, numbers(shown), caption=single, **ATTENTION),
        _heatmap(
            "shares", "share \u00b1 deviation over inputs", (names, part), mean, varied,
            beside="heads", caption=over_inputs, **ATTENTION,
        ),
        _heatmap(
            "classes", "class, and the share of inputs that give it", grid, agreement, named,
            beside="heads", caption=over_inputs, **INPUTS,
        ),
        Panel(
            "entropy by layer", (layer,), entropy.mean(1), view="lines", beside="entropy", caption=by_depth, **ENTROPY
        ),
        _heatmap(
            "entropy", "entropy of each head", grid, entropy, numbers(entropy),
            beside="entropy", caption=by_depth, **ENTROPY,
        ),
        Panel(
            "shares by layer", (part, layer), by_layer, view="lines", title="share by layer", caption=depth, **ATTENTION
        ),
    )  # fmt: skip


def _fall_in_words(falls: Mapping[str, Any]) -> str:
    if "difference" not in falls:
        return ""
    error = falls["error"]
    interval = "" if error is None else f" (two standard errors over heads: \u00b1{2 * error:.3f})"
    return (
        f" \u201cBroad early, sharp late\u201d is {falls['verdict']} here: from the first layer to the last the mean "
        f"over heads falls by {falls['difference']:.3f}{interval}."
    )


def _heatmap(
    name: str, title: str, axes: tuple[Axis, ...], values: Float[np.ndarray, "..."], words: np.ndarray, **meaning: Any
) -> Panel:
    return Panel(name, axes, values, title=title, view="heatmap", site="pattern", words=words, **meaning)


def tables_of(facts: Mapping[str, Any]) -> tuple[ResultTable, ...]:
    """A row for each head, and one for each layer."""
    return _head_table(facts["heads"]), _layer_table(facts["layers"])


def _head_table(heads: Sequence[Mapping[str, Any]]) -> ResultTable:
    rows = []
    for head in heads[:MOST_ROWS]:
        part, share = max(head["shares"].items(), key=lambda item: item[1])
        numbers_said = (round(share, 3), round(head["entropy_share"], 3), round(head["agreement"], 3))
        rows.append((head["name"], head["class"], part, *numbers_said, head["stable"]))
    return ResultTable(
        "What each head attends to",
        ("head", "class", "most attention on", "share", "entropy", "agreement", "stable"),
        tuple(rows),
        "Means over the inputs. Entropy: 0 = one key, 1 = uniform over the visible keys. Agreement: the share of "
        "single inputs that give the head the same class; a head is stable where that is high.",
    )


def _layer_table(layers: Sequence[Mapping[str, Any]]) -> ResultTable:
    shares = tuple(layers[0]["shares"])
    return ResultTable(
        "By layer",
        ("layer", "entropy", "over heads", *shares),
        tuple(
            (
                layer["layer"],
                *(round(x, 3) for x in (layer["entropy_share"], layer["entropy_spread"], *layer["shares"].values())),
            )
            for layer in layers
        ),
        "Means over the heads of a layer: the entropy as a share of the largest, its standard deviation over the "
        "heads, and the share of attention on each part.",
    )
