"""Panels and tables of the Fourier lens."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from algoscope.core.finding import ResultTable
from algoscope.core.panel import Axis, Mark, Panel
from algoscope.lenses.modular_arithmetic.group_characters import Components
from algoscope.lenses.modular_arithmetic.logit_spectrum import MOST_KEYS, Fit, OnPairs, energies
from algoscope.lenses.modular_arithmetic.weight_spectrum import Matrix
from algoscope.tasks.groups.binary import Binary

ABOUT = (
    "A model of a group's operation has a logit for every triple of first operand a, second operand b and answer c. "
    "This lens expands the logits over all pairs in the characters of the group: for addition modulo n the cosines "
    "cos(2 pi k (a + b - c) / n) of every frequency k, for any other group the characters of its irreducible "
    "representations. Key components are those whose character is similar to the logits. They are named as the "
    "mechanism only where they are few, explain most of the variance of the logits, suffice (the restricted loss, with "
    "nothing else left in the logits, is as low as the model's) and are needed (the excluded loss, without them, is "
    "that of a uniform guess). The unexplained variance is not accounted for. For a model that answers too many pairs "
    "wrongly no mechanism is named, but its numbers are shown. The lens does not decide how the model computes these "
    "functions: a clock and a pizza both have them. Definitions: Nanda et al., arXiv 2301.05217; "
    "Chughtai et al., arXiv 2302.03025."
)
LEAST = 1e-6  # a similarity below this is float noise: no bar on a logarithmic scale
READABLE = 128  # elements up to which a square of all components is drawn
MATRICES = {
    "W_E": "W_E, embedding",
    "W_U": "W_U, unembedding",
    "W_L": "W_L, neurons to logits",
}
CHECKS = {  # for naming the key components as the mechanism: the compared quantity
    "few": "dimensions of the key components, as a share of all",
    "explained": "variance of the logits explained by their characters",
    "sufficient": "restricted loss: only the key components (nats)",
    "needed": "excluded loss: without the key components (nats)",
}


def _across(components: Components) -> Axis:
    return Axis(components.noun, components.labels, components.noun)


def similarity_panel(components: Components, fit: Fit, threshold: float) -> Panel:
    """Similarity of the logits to each component's character; values that are not positive have no bar."""
    similarity = fit.similarity[1:]
    return Panel(
        name="logit similarity",
        title=f"similarity of the logits to the {components.function} of each {components.noun}",
        axes=(_across(components),),
        values=np.where(similarity > LEAST, similarity, np.nan),
        unit="cosine similarity",
        zero="orthogonal to the logits",
        one=f"the logits are a multiple of this {components.function}",
        view="bars",
        scale="log",
        marks=(Mark(threshold, f"{threshold:g}", "y"),),
        quantity="similarity",
        caption=(
            f"Cosine similarity between the logits and the {components.function} of each {components.noun}. Over all "
            "pairs and answers, less the mean over the answers of each pair; logarithmic. The square of a bar is the "
            f"share of the logits' variance that this {components.noun} explains. {components.nouns.capitalize()} "
            f"above the dashed line ({threshold:g}) are the key {components.nouns}."
        ),
    )


def energy_panels(components: Components, by_time: Mapping[str, Mapping[str, Matrix]]) -> list[Panel]:
    """Shares of each matrix's energy, without the constant row, before training (if known) and after; the input of the
    neurons by head.
    """
    when, names = Axis("when", tuple(by_time)), list(list(by_time.values())[-1])
    heads = [name for name in names if name not in MATRICES]
    shares = {name: np.stack([_varying(components, matrices[name]) for matrices in by_time.values()]) for name in names}
    energy: dict[str, Any] = {
        "unit": "share of energy",
        "zero": f"no energy at this {components.noun}",
        "one": f"all energy at this {components.noun}",
        "view": "bars",
        "scale": "unit",
        "quantity": "share",
    }
    caption = (
        f"Energy of the weights by {components.noun}. Share of the squared Frobenius norm of each matrix, without its "
        f"constant part: W_E the embeddings of the elements, W_U their unembeddings, W_L = W_out W_U the direct "
        f"effect of the last layer's neurons on the logits. Sparse weights alone prove nothing: the losses do."
    )
    panels = [
        Panel(f"energy {name}", (when, _across(components)), shares[name], title=title, caption=caption, **energy)
        for name, title in MATRICES.items()
        if name in names
    ]
    if heads:
        axes = (when, Axis("through", tuple(heads)), _across(components))
        received = np.stack([shares[name] for name in heads], axis=1)
        caption = (
            f"Input of the first layer's neurons by {components.noun} and attention head. Share of the squared "
            f"Frobenius norm of W_E W_V W_O W_in: the path to the neurons from an operand that the head attends to."
        )
        title = "input of the neurons through"
        panels.append(Panel("neuron input", axes, received, title=title, caption=caption, **energy))
    return panels


def _varying(components: Components, matrix: Matrix) -> Float[np.ndarray, "component"]:
    energy = components.shares(matrix)[1:]
    return energy / energy.sum() if energy.sum() > 0 else energy


def neuron_panels(components: Components, layers: Sequence[Mapping[str, Any]], threshold: float) -> list[Panel]:
    """The number of neurons of each component, and the fit of each neuron's best component, best neurons first."""
    panels = []
    for facts in layers:
        counted = {row["component"]: row["neurons"] for row in facts["counts"]}
        variance = np.sort([row["fve"] for row in facts["each"]])[::-1]
        beside = f"neurons of layer {facts['layer']}"
        caption = (
            f"Neurons of layer {facts['layer']} by {components.noun}, at the answer position. A "
            f"neuron counts for a {components.noun} where products of its functions of a and of b hold more than "
            f"{threshold:.0%} of the neuron's variance over all pairs (right: that share for the best "
            f"{components.noun} of each neuron, dashed: the threshold). Here {facts['fitted']:,} of "
            f"{facts['neurons']:,} neurons do."
        )
        panels += [
            Panel(
                name=f"neurons L{facts['layer']}",
                title=f"L{facts['layer']}: neurons of each {components.noun}",
                axes=(_across(components),),
                values=np.array([counted.get(label, 0) for label in components.labels], dtype=float),
                unit="neurons",
                zero="none",
                view="bars",
                beside=beside,
                quantity="neurons",
                caption=caption,
            ),
            Panel(
                name=f"neuron fit L{facts['layer']}",
                title=f"L{facts['layer']}: how well one {components.noun} fits each neuron",
                axes=(Axis("rank", tuple(range(1, len(variance) + 1)), "neurons, the best fitted first"),),
                values=variance,
                unit="share of variance",
                zero="unexplained",
                one=f"a polynomial of degree 2 in one {components.noun}",
                view="lines",
                scale="unit",
                marks=(Mark(threshold, f"{threshold:g}", "y"),),
                beside=beside,
                quantity="fve",
                caption=caption,
            ),
        ]
    return panels


def loss_panel(components: Components, losses: Sequence[Mapping[str, Any]], chance: float) -> Panel:
    """The model's loss, with only the key components, without them, and the same for each key."""
    over, most = list(dict.fromkeys(row["over"] for row in losses)), max(len(row["keys"]) for row in losses)
    words = {"full": "the model", "restricted": "only {}", "excluded": "without {}"}
    which = ["keys" if len(row["keys"]) == most else ", ".join(map(str, row["keys"])) for row in losses]
    names = [words[row["what"]].format(name) for row, name in zip(losses, which, strict=True)]
    bars = sorted(dict.fromkeys(names), key=lambda name: (name != "the model", " keys" not in name, "without" in name))
    values = np.full((len(over), len(bars)), np.nan)
    for name, row in zip(names, losses, strict=True):
        values[over.index(row["over"]), bars.index(name)] = row["loss"] if row["loss"] > 0 else np.nan
    return Panel(
        name="losses",
        title="loss",
        axes=(Axis("over", tuple(over)), Axis("kept", tuple(bars), "logits kept")),
        values=values,
        unit="nats",
        zero="certain of every answer",
        view="bars",
        scale="log",
        marks=(Mark(chance, "chance", "y", "below"),),
        quantity="loss",
        caption=(
            f"The loss with only the key {components.nouns}, and without them. Restricted loss (only): only the part "
            f"of the logits that depends on the product of a and b through these {components.nouns}, and the mean "
            f"over all "
            "pairs. Excluded loss (without): the logits less that part. Mean cross-entropy in nats, logarithmic; bars "
            "above the dashed line, pale, are worse than a uniform guess."
        ),
    )


def attention_panel(task: Binary, heads: Sequence[Mapping[str, Any]]) -> Panel:
    """The mean share of each head's attention on each part of the prompt."""
    n_layers = 1 + max(row["layer"] for row in heads)
    values = np.array([list(row["mean"].values()) for row in heads]).reshape(n_layers, -1, len(task.parts))
    return Panel(
        name="attention",
        title="attention from the answer position",
        axes=(
            Axis("layer", tuple(range(n_layers))),
            Axis("head", tuple(range(values.shape[1]))),
            Axis("part", tuple(task.parts), "part of the prompt"),
        ),
        values=values,
        unit="mean share of attention",
        zero="no attention",
        one="all attention",
        view="bars",
        scale="unit",
        caption=(
            "Attention from the answer position to each part of the prompt. The mean over all pairs, for each head; "
            "the bars of a head add up to 1."
        ),
    )


def block_panel(logits: OnPairs, components: Components) -> list[Panel]:
    """Two-dimensional spectrum of the logits, less their mean for each pair; none for a group too large to draw."""
    if components.order > READABLE:
        return []
    energy = energies(logits - logits.mean(dim=-1, keepdim=True), components).sum(dim=-1)
    energy[0, 0] = 0.0
    if float(energy.sum()) == 0:
        return []
    labels = ("constant", *components.labels)
    return [
        Panel(
            name="logit spectrum",
            title=f"logits by {components.noun} of a and of b",
            axes=(
                Axis("of a", labels, f"{components.noun} along a"),
                Axis("of b", labels, f"{components.noun} along b"),
            ),
            values=(100 * energy / energy.sum()).cpu().numpy(),
            unit="% of the variance over pairs",
            zero="does not occur",
            view="heatmap",
            scale="log",
            quantity="percent",
            caption=(
                f"The logits by {components.noun} of the first and of the second operand. The two-dimensional "
                "transform over all pairs of the logits, less their mean for each pair: shares of their variance, with "
                "colours on a logarithmic scale. Logits that depend on the product of a and b alone lie on the "
                "diagonal."
            ),
        )
    ]


def tables_of(facts: Mapping[str, Any], components: Components) -> list[ResultTable]:
    """The key components, the checks behind the verdict, and the replacements, where there are any."""
    tables = [_keys_table(facts, components), _checks_table(facts)] if facts["keys"] else []
    if facts.get("replacements"):
        rows = tuple((row["replaced"], row["loss"], row["change"]) for row in facts["replacements"])
        tables.append(
            ResultTable(
                title="Neurons and logits replaced by what the mechanism predicts",
                columns=("replacement", "loss", "relative change"),
                rows=rows,
                caption=(
                    "The loss in nats over all pairs after each replacement, and its change relative to the model's "
                    "own loss. A change near 0: the rest has no effect."
                ),
            )
        )
    return tables


def _keys_table(facts: Mapping[str, Any], components: Components) -> ResultTable:
    loss = {(row["what"], *row["keys"]): row["loss"] for row in facts["losses"] if row["over"] == "all pairs"}
    largest = sorted(facts["keys"], key=lambda key: -key["fve"])[:MOST_KEYS]
    rows = [
        (
            key["component"],
            key["similarity"],
            key["alpha"],
            key["fve"],
            loss.get(("restricted", key["component"])),
            loss.get(("excluded", key["component"])),
        )
        for key in facts["keys"]
        if key in largest
    ]
    named = (
        components.noun,
        "similarity",
        "height (logits)",
        "share of logit variance",
        "loss with it alone",
        "loss without it",
    )
    return ResultTable(
        title=f"Key {components.nouns}",
        columns=named,
        rows=tuple(rows),
        caption=(
            f"The {components.nouns} whose {components.function} is similar to the logits, the first {MOST_KEYS} by "
            "share: cosine similarity, height of the fitted function in logits, and the share of the logits' variance "
            "that it explains; the loss in nats over all pairs with this one alone and without it."
        ),
    )


def _checks_table(facts: Mapping[str, Any]) -> ResultTable:
    signs = {"few": "at most", "explained": "at least", "sufficient": "at most", "needed": "at least"}
    evidence = facts["evidence"]
    return ResultTable(
        title="Are the key components the mechanism?",
        columns=("check", "value", "bound", "holds"),
        rows=tuple(
            (
                meaning,
                evidence[name]["value"],
                f"{signs[name]} {evidence[name]['bound']:.4g}",
                facts["checks"][name],
            )
            for name, meaning in CHECKS.items()
        ),
        caption=(
            "The verdict rests on these four checks: few, explained, sufficient and needed. `sufficient` also "
            "requires that the key components alone are right on as many pairs as a learned model must be."
        ),
    )
