"""The panels of the Fourier lens."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from algoscope.core.panel import Axis, Mark, Panel
from algoscope.lenses.modular_arithmetic.group_characters import Components
from algoscope.lenses.modular_arithmetic.logit_spectrum import Fit, OnPairs, energies
from algoscope.lenses.modular_arithmetic.weight_spectrum import Matrix
from algoscope.tasks.groups.binary import Binary

LEAST = 1e-6  # a similarity below this is float noise: no bar on a logarithmic scale
READABLE = 128  # elements up to which a square of all components is drawn
TITLES = {
    "W_E": "W_E, embedding",
    "W_U": "W_U, unembedding",
    "W_L": "W_L, what neurons say to logits",
}


def _across(components: Components) -> Axis:
    return Axis(components.noun, components.labels, components.noun)


def similarity_panel(components: Components, fit: Fit, threshold: float) -> Panel:
    """Logits against each component's wave; what is not positive has no bar."""
    near = fit.similarity[1:]
    return Panel(
        name="logit similarity",
        title="logits against the wave of each " + components.noun,
        axes=(_across(components),),
        values=np.where(near > LEAST, near, np.nan),
        unit="cosine similarity",
        zero="nothing in common",
        one="the logits are this wave",
        view="bars",
        scale="log",
        marks=(Mark(threshold, f"{threshold:g}", "y"),),
        quantity="similarity",
    )


def energy_panels(components: Components, by_time: Mapping[str, Mapping[str, Matrix]]) -> list[Panel]:
    """Shares of each matrix's energy, the constant row left out, for each time that is known; what neurons receive
    through each head together.
    """
    when, names = Axis("when", tuple(by_time)), list(list(by_time.values())[-1])
    heads = [name for name in names if name not in TITLES]
    shares = {name: np.stack([_varying(components, matrices[name]) for matrices in by_time.values()]) for name in names}
    meaning: dict[str, Any] = {
        "unit": "share of energy",
        "zero": f"nothing at this {components.noun}",
        "one": f"all that varies is of this {components.noun}",
        "view": "bars",
        "scale": "unit",
        "quantity": "share",
    }
    panels = [
        Panel(f"energy {name}", (when, _across(components)), shares[name], title=TITLES[name], **meaning)
        for name in names
        if name in TITLES
    ]
    if heads:
        axes = (when, Axis("through", tuple(heads)), _across(components))
        received = np.stack([shares[name] for name in heads], axis=1)
        panels.append(Panel("neuron input", axes, received, title="what neurons receive through", **meaning))
    return panels


def _varying(components: Components, matrix: Matrix) -> Float[np.ndarray, "component"]:
    energy = components.shares(matrix)[1:]
    return energy / energy.sum() if energy.sum() > 0 else energy


def neuron_panels(components: Components, layers: Sequence[Mapping[str, Any]], threshold: float) -> list[Panel]:
    """How many neurons follow each component, and how well the best one fits each neuron, the best neurons first."""
    panels = []
    for facts in layers:
        counted = {row["component"]: row["neurons"] for row in facts["counts"]}
        fitted = np.sort([row["fve"] for row in facts["each"]])[::-1]
        beside = f"neurons of layer {facts['layer']}"
        panels += [
            Panel(
                name=f"neurons L{facts['layer']}",
                title=f"L{facts['layer']}: neurons that follow each {components.noun}",
                axes=(_across(components),),
                values=np.array([counted.get(label, 0) for label in components.labels], dtype=float),
                unit="neurons",
                zero="none",
                view="bars",
                beside=beside,
                quantity="neurons",
            ),
            Panel(
                name=f"neuron fit L{facts['layer']}",
                title=f"L{facts['layer']}: how well one {components.noun} fits each neuron",
                axes=(Axis("rank", tuple(range(1, len(fitted) + 1)), "neurons, the best fitted first"),),
                values=fitted,
                unit="share of variance",
                zero="unexplained",
                one=f"a polynomial of degree 2 in one {components.noun}",
                view="lines",
                scale="unit",
                marks=(Mark(threshold, f"{threshold:g}", "y"),),
                beside=beside,
                quantity="fve",
            ),
        ]
    return panels


def loss_panel(losses: Sequence[Mapping[str, Any]], chance: float) -> Panel:
    """The model's loss, with all keys alone, without them, and the same for each key."""
    over, most = list(dict.fromkeys(row["over"] for row in losses)), max(len(row["keys"]) for row in losses)
    words = {"full": "the model", "restricted": "only {}", "excluded": "without {}"}
    whose = ["keys" if len(row["keys"]) == most else ", ".join(map(str, row["keys"])) for row in losses]
    names = [words[row["what"]].format(name) for row, name in zip(losses, whose, strict=True)]
    bars = sorted(dict.fromkeys(names), key=lambda name: (name != "the model", " keys" not in name, "without" in name))
    values = np.full((len(over), len(bars)), np.nan)
    for name, row in zip(names, losses, strict=True):
        values[over.index(row["over"]), bars.index(name)] = row["loss"] if row["loss"] > 0 else np.nan
    return Panel(
        name="losses",
        title="loss",
        axes=(Axis("over", tuple(over)), Axis("kept", tuple(bars), "what is left of the logits")),
        values=values,
        unit="nats",
        zero="certain of every answer",
        view="bars",
        scale="log",
        marks=(Mark(chance, "chance", "y", "below"),),
        quantity="loss",
    )


def attention_panel(task: Binary, heads: Sequence[Mapping[str, Any]]) -> Panel:
    """The mean share of each head's attention on each part of the prompt."""
    n_layers = 1 + max(row["layer"] for row in heads)
    values = np.array([list(row["mean"].values()) for row in heads]).reshape(n_layers, -1, len(task.parts))
    return Panel(
        name="attention",
        title="where the answer position looks",
        axes=(
            Axis("layer", tuple(range(n_layers))),
            Axis("head", tuple(range(values.shape[1]))),
            Axis("part", tuple(task.parts), "part of the prompt"),
        ),
        values=values,
        unit="mean share of attention",
        zero="never looked at",
        one="all attention",
        view="bars",
        scale="unit",
    )


def block_panel(logits: OnPairs, components: Components) -> list[Panel]:
    """How the logits, less their mean for each pair, vary with a and with b: nothing for a group too large to draw."""
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
        )
    ]
