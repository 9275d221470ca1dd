"""The Fourier lens: which frequencies, or representations, a model of a group's operation works with, and how much of
what it says they explain.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from jaxtyping import Float
from torch import Tensor

from algoscope.core.finding import Finding
from algoscope.core.panel import Panel
from algoscope.lenses.inputs.prompts import Prompts
from algoscope.lenses.modular_arithmetic.fourier_panels import (
    attention_panel,
    block_panel,
    energy_panels,
    loss_panel,
    neuron_panels,
    similarity_panel,
)
from algoscope.lenses.modular_arithmetic.group_characters import Component, Components, components_of
from algoscope.lenses.modular_arithmetic.logit_spectrum import (
    MOST_KEYS,
    Fit,
    OnPairs,
    Scores,
    best_fits,
    bound_of,
    by_product,
    fit_of,
    part_of,
    restricted,
    scores,
    scores_by_product,
    spread,
)
from algoscope.lenses.modular_arithmetic.neuron_frequencies import (
    LastNeurons,
    direction_fits,
    neuron_facts,
    replacements,
)
from algoscope.lenses.modular_arithmetic.operand_pairs import Pairs, has_pairs, on_idle_cores, pairs_of
from algoscope.lenses.modular_arithmetic.weight_spectrum import Weights, beyond, ginis, sum_of_squares, weights_of
from algoscope.runs.run_folder import Run
from algoscope.subjects.opening import open_subject
from algoscope.subjects.subject import Subject

NEAR = 0.01  # of ln n: losses that differ by less are called alike
FEW = 0.5  # keys with a larger share of the dimensions are no choice: a table of answers has every frequency
FAILED = {
    "few": "there are too many to be a choice",
    "explained": "they leave too much of the logits unexplained",
    "sufficient": "alone they do not answer as well",
    "needed": "the model does better than chance without them",
}


@on_idle_cores()
def fourier(
    subject: str | Run | Subject,
    *,
    similar: float = 0.005,
    fits: float = 0.85,
    cluster: float = 0.05,
    learned: float = 0.99,
    explained: float = 0.9,
    runs_dir: str | None = None,
) -> Finding:
    """Divide embeddings, composed weights, neurons and logits among the frequencies of addition modulo n, or the
    representations of any group, over every pair of its elements; say whether a few of them carry the answer.

    Subtraction and multiplication are the cyclic group in another order (pairs with a zero are left out of the
    latter). Definitions in `characters`, `fourier_measures`, `fourier_weights`; of the facts:

    - `accuracy` over all pairs; below `learned` the verdict is `not learned` and no mechanism is claimed;
    - `keys`: components whose wave is `similar` to the logits, with similarity, height alpha in logits and share of
      the logit variance; `logit_fve` is their sum, 1 = the waves are all there is; `keys_by_neurons`: those that at
      least a share `cluster` of the neurons follow that fit one component by more than `fits` (all counts: `neurons`);
    - `losses` in nats, over all, training and held-out pairs: `full`; `restricted`, with only the keys' functions of
      the product left and the mean of each output; `excluded`, without them; for all keys and for each;
    - `gini` of W_E and W_L (0 = all waves alike), `sum_of_squares` of all weights, `w_l_beyond_keys`: the share of W_L
      outside its two (for a representation: more) directions for each key, of its norm and of its energy;
    - `replacements`, `bound` (does the mechanism prove every answer?), `attention`, `left_out`.

    The verdict rests on logits and on what the loss does, never on how sparse an embedding is: `characters` where the
    keys are few (at most half of the dimensions: a table of answers has every frequency), explain the share
    `explained` of the logit variance, suffice (restricted loss at most 1 % of ln n above the full one, accuracy at
    least `learned`) and are needed (excluded loss at least ln n, within 1 %); `characters in part` where only the
    share of the variance is smaller; else `other`. `checks` has all four. How the waves of the product are made is not
    said: a clock and a pizza both have them (lens `clock`).

    Raises TaskMismatchError for a model of free text and for a task that is no group's operation, SubjectError for a
    group of more than 421 elements.
    """
    subject = open_subject(subject, runs_dir=runs_dir)
    pairs = pairs_of(subject)
    components = components_of(pairs.structure)
    logits = pairs.logits(subject)
    means = by_product(logits, pairs.product)
    fit = fit_of(means[:, pairs.answer], spread(logits, pairs.answer), components)
    keys = [part for part, near in zip(components.parts, fit.similarity, strict=True) if near > similar]
    losses = _losses(logits, means, pairs, components, keys)
    weights = weights_of(subject, pairs)
    bounds = {"similar": similar, "neuron": fits, "cluster": cluster, "learned": learned, "explained": explained}
    facts: dict[str, Any] = {
        "subject": subject.name,
        "elements": pairs.order,
        "pairs": pairs.order**2,
        "components": components.nouns,
        "labels": list(components.labels),
        "thresholds": bounds,
        "accuracy": losses[0]["accuracy"],
        "right": round(losses[0]["accuracy"] * pairs.order**2),
        "chance_loss": math.log(pairs.order),
        "keys": _keys(components, fit, keys),
        "similarity": [float(near) for near in fit.similarity[1:]],
        "logit_fve": float(sum(fit.similarity[components.parts.index(part)] ** 2 for part in keys)),
        "losses": losses,
        "bound": asdict(bound_of(logits, pairs, components, fit, keys)),
        "left_out": dict(weights.left_out),
    }
    facts |= _verdict(facts, components, keys)
    facts |= _of_weights(subject, weights, components, keys)
    of_activations, panels = _activations(subject, pairs, components, logits, keys, weights, bounds)
    facts |= of_activations
    return Finding(
        kind="fourier",
        claim=_claim(facts, components),
        facts=facts,
        panels=(
            similarity_panel(components, fit, similar),
            loss_panel(losses, facts["chance_loss"]),
            *_energies(subject, pairs, components, weights),
            *panels,
            *block_panel(logits[..., pairs.answer], components),
        ),
        provenance={"subject": subject.name, "weights_sha256": subject.weights_sha256},
    )


# ---------------------------------------------------------------------- logits


def _keys(components: Components, fit: Fit, keys: Sequence[Component]) -> list[dict[str, Any]]:
    found = []
    for part in keys:
        number = components.parts.index(part)
        near, alpha = float(fit.similarity[number]), float(fit.alpha[number])
        found.append({"component": part.label, "similarity": near, "alpha": alpha, "fve": near**2})
    return found


def _losses(
    logits: OnPairs,
    means: Float[Tensor, "n d_vocab"],
    pairs: Pairs,
    components: Components,
    keys: Sequence[Component],
) -> list[dict[str, Any]]:
    """The full model first, over all pairs; then with only all keys, without them, and the same for each key."""
    rows = []

    def add(what: str, chosen: list[int | str], scored: Scores) -> None:
        for over, those in pairs.subsets().items():
            loss, accuracy = scored.over(those)
            rows.append({"what": what, "keys": chosen, "over": over, "loss": loss, "accuracy": accuracy})

    add("full", [], scores(logits, pairs))
    labels = [part.label for part in keys]
    single = [[label] for label in labels] if 1 < len(labels) <= MOST_KEYS else []
    for chosen in [labels, *single] if labels else []:
        add("restricted", chosen, scores_by_product(restricted(means, components, chosen), pairs))
        add("excluded", chosen, scores(logits, pairs, without=part_of(means, components, chosen)))
    return rows


# ---------------------------------------------------------------------- what is said


def _verdict(facts: Mapping[str, Any], components: Components, keys: Sequence[Component]) -> dict[str, Any]:
    """The four checks and the verdict, as `fourier` states them."""
    bounds, chance = facts["thresholds"], facts["chance_loss"]
    rows = {row["what"]: row for row in reversed(facts["losses"]) if row["over"] == "all pairs"}  # all keys come first
    size = sum(part.size for part in keys)
    checks = {"few": 0 < size <= FEW * (components.order - 1), "explained": facts["logit_fve"] >= bounds["explained"]}
    if keys:
        kept, without = rows["restricted"], rows["excluded"]
        close = kept["loss"] <= rows["full"]["loss"] + NEAR * chance
        checks["sufficient"] = close and kept["accuracy"] >= bounds["learned"]
        checks["needed"] = without["loss"] >= (1 - NEAR) * chance
    else:
        checks |= {"sufficient": False, "needed": False}
    if facts["accuracy"] < bounds["learned"]:
        verdict = "not learned"
    elif not (checks["few"] and checks["sufficient"] and checks["needed"]):
        verdict = "other"
    else:
        verdict = "characters" if checks["explained"] else "characters in part"
    return {"key_dimensions": size, "checks": checks, "verdict": verdict}


def _claim(facts: Mapping[str, Any], components: Components) -> str:
    said = f"{facts['right']:,} of {facts['pairs']:,} pairs right"
    if facts["verdict"] == "not learned":
        return f"{said}, below {facts['thresholds']['learned']:.0%}: not learned, so no mechanism is named"
    keys = [str(key["component"]) for key in facts["keys"]]
    if not keys:
        return f"{said}; no {components.noun} is similar to the logits, so {components.nouns} are not how"
    waves = "cosines" if components.noun == "frequency" else "characters"
    named = f" ({', '.join(keys)})" if len(keys) <= MOST_KEYS else ""
    noun = components.noun if len(keys) == 1 else components.nouns
    said += f"; the {waves} of {len(keys)} {noun}{named} explain {facts['logit_fve']:.1%} of the logit variance"
    loss = {row["what"]: row["loss"] for row in reversed(facts["losses"]) if row["over"] == "all pairs"}
    said += f"; loss {loss['full']:.2g}, with them alone {loss['restricted']:.2g}, without them {loss['excluded']:.3g}"
    said += f" (chance {facts['chance_loss']:.3g})"
    if facts["verdict"] == "other":
        failed = ", ".join(FAILED[name] for name, holds in facts["checks"].items() if not holds)
        return f"{said}; they are not named as the mechanism: {failed}"
    return said if facts["verdict"] == "characters" else f"{said}; the rest of the logits is unaccounted for"


# ---------------------------------------------------------------------- weights and activations


def _of_weights(
    subject: Subject, weights: Weights, components: Components, keys: Sequence[Component]
) -> dict[str, Any]:
    labels = tuple(part.label for part in keys)
    found: dict[str, Any] = {"gini": ginis(weights, components), "sum_of_squares": sum_of_squares(subject)}
    if "W_L" in weights.matrices and keys:
        left = beyond(weights.matrices["W_L"], components, labels)
        found["w_l_beyond_keys"] = {"norm": left, "energy": left**2}
    found["constant"] = {name: float(components.shares(matrix)[0]) for name, matrix in weights.matrices.items()}
    return found


def _energies(subject: Subject, pairs: Pairs, components: Components, weights: Weights) -> list[Panel]:
    before = subject.before_training()
    earlier = {} if before is None else {"before training": weights_of(before, pairs).matrices}
    return energy_panels(components, earlier | {"after training" if earlier else "now": weights.matrices})


def _activations(
    subject: Subject,
    pairs: Pairs,
    components: Components,
    logits: OnPairs,
    keys: Sequence[Component],
    weights: Weights,
    bounds: Mapping[str, float],
) -> tuple[dict[str, Any], list[Panel]]:
    """What neurons and attention do at the answer position."""
    neurons, attention = pairs.activations(subject)
    found: dict[str, Any] = {"attention": _attention(pairs, components, attention)}
    panels = [attention_panel(pairs.task, found["attention"])]
    if not neurons:
        return found, panels
    fitted = {layer: best_fits(values, pairs, components) for layer, values in neurons.items()}
    found["neurons"] = [neuron_facts(layer, fits, components, bounds) for layer, fits in fitted.items()]
    found["keys_by_neurons"] = found["neurons"][-1]["keys"]
    if weights.said is not None:
        last = max(neurons)
        known = LastNeurons(neurons[last], weights.said, logits, pairs, components)
        found["directions"] = direction_fits(known, keys)
        found["replacements"] = replacements(known, fitted[last], keys, bounds["neuron"])
    return found, [*neuron_panels(components, found["neurons"], bounds["neuron"]), *panels]


def _attention(
    pairs: Pairs, components: Components, looks: Float[Tensor, "layer head n n pos"]
) -> list[dict[str, Any]]:
    """Where each head looks from the answer position, over all pairs: mean and standard deviation of the share on each
    part of the prompt, and the component that the share on the first operand follows.
    """
    parts, place = pairs.task.parts, pairs.task.places[0]
    rows = []
    for layer, heads in enumerate(looks):
        fits = best_fits(heads[..., place].movedim(0, -1), pairs, components)
        for head, shares in enumerate(heads):
            on = {name: shares[..., where].sum(dim=-1) for name, where in parts.items()}
            rows.append(
                {
                    "layer": layer,
                    "head": head,
                    "mean": {name: float(share.mean()) for name, share in on.items()},
                    "spread": {name: float(share.std(correction=0)) for name, share in on.items()},
                    "follows": components.parts[fits.part[head]].label if fits.alive[head] else None,
                    "fve": float(fits.share[head]),
                }
            )
    return rows


def for_report(subject: Subject, prompts: Prompts) -> dict[str, Any] | None:
    """What a report asks: every pair, where the task has pairs."""
    return {} if has_pairs(subject) else None
