"""The Fourier lens: the key frequencies, or representations, of a model of a group's operation, and the share of its
logits that they explain.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from jaxtyping import Float
from torch import Tensor

from algoscope.core.arguments import Folder, checked_arguments
from algoscope.core.finding import Finding
from algoscope.core.panel import Panel
from algoscope.lenses.inputs.prompts import Prompts
from algoscope.lenses.modular_arithmetic._fourier_panels import (
    ABOUT,
    attention_panel,
    block_panel,
    energy_panels,
    loss_panel,
    neuron_panels,
    similarity_panel,
    tables_of,
)
from algoscope.lenses.modular_arithmetic._neuron_frequencies import (
    LastNeurons,
    direction_fits,
    neuron_facts,
    replacements,
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
from algoscope.lenses.modular_arithmetic.operand_pairs import Pairs, has_pairs, on_idle_cores, pairs_of
from algoscope.lenses.modular_arithmetic.weight_spectrum import Weights, beyond, ginis, sum_of_squares, weights_of
from algoscope.subjects.opening import AnyModel, measurement, open_subject
from algoscope.subjects.subject import Subject

NEAR = 0.01  # of ln n: losses that differ by less count as equal
FEW = 0.5  # keys with a larger share of the dimensions are not sparse: a lookup table has every frequency
FAILED = {
    "few": "there are too many of them",
    "explained": "they explain too little of the logit variance",
    "sufficient": "alone they do not suffice for the model's loss and accuracy",
    "needed": "without them the loss is still below chance",
}


@on_idle_cores()
@checked_arguments
@measurement
def fourier(
    subject: AnyModel,
    *,
    similar: float = 0.005,
    fits: float = 0.85,
    cluster: float = 0.05,
    learned: float = 0.99,
    explained: float = 0.9,
    runs_dir: Folder = None,
) -> Finding:
    """Find the frequencies (of any group: representations) that carry a model's answer, and how much they explain.

    Embeddings, composed weights, neurons and logits are decomposed into the frequencies of addition modulo n, or the
    representations of any group, over all pairs of elements. Subtraction and multiplication are cyclic groups with
    reordered elements (multiplication without pairs that contain a zero).

    The verdict rests on logits and losses, never on how sparse an embedding is: `characters` where the key components
    are few (at most half of the dimensions: a lookup table has every frequency), explain the share `explained` of the
    logit variance, suffice (restricted loss at most 1 % of ln n above the full one, accuracy at least `learned`) and
    are needed (excluded loss at least ln n, within 1 %); `characters in part` where all but `explained` hold; else
    `other`. The lens does not decide how the model computes these functions of the product: a clock and a pizza both
    have them (lens `clock`).

    Args:
        subject: a model of modular arithmetic or of a group's operation, by name or opened.
        similar: cosine similarity with the logits above which a component is a key component.
        fits: share of a neuron's variance above which one component fits it.
        cluster: share of the fitted neurons from which on their component counts among `keys_by_neurons`.
        learned: accuracy over all pairs below which the verdict is `not learned` and no mechanism is claimed.
        explained: share of the logit variance that the key components must explain for the verdict `characters`.
        runs_dir: where `run:NAME` is looked up; by default as for every command.
    Returns:
        A finding with panels `logit similarity` [component] (cosine; 1 = the logits are this function), `losses` [over
        kept] (nats), `energy W_E`, `energy W_U`, `energy W_L` [when component], `neuron input` [when through component]
        (shares of energy), `neurons L0` [component] and `neuron fit L0` [rank] for each layer, `attention` [layer head
        part] (mean shares), `logit spectrum` (% of variance); and facts `accuracy`; `keys`, each with similarity,
        height `alpha` in logits and share `fve` of the logit variance; `logit_fve`, the sum of the shares (1 = nothing
        else); `losses` in nats over all, training and held-out pairs: `full`, `restricted` (only the key components'
        functions of the product, and the mean of each output), `excluded` (without them), for all keys and for each;
        `neurons` by layer, `keys_by_neurons`, `gini` of W_E and W_L (0 = all components alike), `sum_of_squares` of all
        weights, `w_l_beyond_keys` (the share of W_L, of norm and of energy, outside the keys' directions),
        `replacements`, `bound` (does the mechanism prove every answer?), `attention`, `checks`, `verdict`, `left_out`.
    Raises:
        TaskMismatchError: for a model of free text and for a task that is not a group's operation.
        SubjectError: for a group of more than 421 elements.
    Source:
        Nanda et al., arXiv 2301.05217; for groups Chughtai et al., arXiv 2302.03025.

    Example:
        >>> import algoscope as ag
        >>> [key["component"] for key in ag.lenses.fourier("planted:pizza")["keys"]]
        [1, 5, 17]
    """
    subject = open_subject(subject, runs_dir=runs_dir)
    bounds = {"similar": similar, "neuron": fits, "cluster": cluster, "learned": learned, "explained": explained}
    return _finding(subject, pairs_of(subject), bounds)


def _finding(subject: Subject, pairs: Pairs, bounds: Mapping[str, float]) -> Finding:
    components = components_of(pairs.structure)
    logits = pairs.logits(subject)
    means = by_product(logits, pairs.product)
    fit = fit_of(means[:, pairs.answer], spread(logits, pairs.answer), components)
    keys = [part for part, value in zip(components.parts, fit.similarity, strict=True) if value > bounds["similar"]]
    losses = _losses(logits, means, pairs, components, keys)
    weights = weights_of(subject, pairs)
    facts: dict[str, Any] = {
        "elements": pairs.order,
        "pairs": pairs.order**2,
        "components": components.nouns,
        "labels": list(components.labels),
        "thresholds": dict(bounds),
        "accuracy": losses[0]["accuracy"],
        "right": round(losses[0]["accuracy"] * pairs.order**2),
        "chance_loss": math.log(pairs.order),
        "keys": _keys(components, fit, keys),
        "similarity": fit.similarity[1:].tolist(),
        "logit_fve": float(sum(fit.similarity[components.parts.index(part)] ** 2 for part in keys)),
        "losses": losses,
        "bound": asdict(bound_of(logits, pairs, components, fit, keys)),
        "left_out": dict(weights.left_out),
    }
    facts |= _verdict(facts, components, keys)
    facts |= _weight_facts(subject, weights, components, keys)
    activation_facts, activation_panels = _activations(subject, pairs, components, logits, keys, weights, bounds)
    facts |= activation_facts
    return subject.finding(
        "fourier",
        _claim(facts, components),
        facts,
        [
            similarity_panel(components, fit, bounds["similar"]),
            loss_panel(components, losses, facts["chance_loss"]),
            *_energies(subject, pairs, components, weights),
            *activation_panels,
            *block_panel(logits[..., pairs.answer], components),
        ],
        about=ABOUT,
        tables=tables_of(facts, components),
    )


# ---------------------------------------------------------------------- logits


def _keys(components: Components, fit: Fit, keys: Sequence[Component]) -> list[dict[str, Any]]:
    rows = []
    for part in keys:
        number = components.parts.index(part)
        similarity, alpha = float(fit.similarity[number]), float(fit.alpha[number])
        rows.append({"component": part.label, "similarity": similarity, "alpha": alpha, "fve": similarity**2})
    return rows


def _losses(
    logits: OnPairs,
    means: Float[Tensor, "n d_vocab"],
    pairs: Pairs,
    components: Components,
    keys: Sequence[Component],
) -> list[dict[str, Any]]:
    """Losses of the full model, with only the key components, without them, and the same for each key."""
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


# ---------------------------------------------------------------------- verdict and claim


def _verdict(facts: Mapping[str, Any], components: Components, keys: Sequence[Component]) -> dict[str, Any]:
    """The four checks with their numbers, and the verdict, as in the docstring of `fourier`."""
    bounds, chance = facts["thresholds"], facts["chance_loss"]
    rows = {row["what"]: row for row in reversed(facts["losses"]) if row["over"] == "all pairs"}  # all keys come first
    size, varying = sum(part.size for part in keys), components.order - 1
    checks = {"few": 0 < size <= FEW * varying, "explained": facts["logit_fve"] >= bounds["explained"]}
    evidence = {
        "few": {"value": size / varying, "bound": FEW},
        "explained": {"value": facts["logit_fve"], "bound": bounds["explained"]},
    }
    if keys:
        kept, without = rows["restricted"], rows["excluded"]
        most, least = rows["full"]["loss"] + NEAR * chance, (1 - NEAR) * chance
        checks["sufficient"] = kept["loss"] <= most and kept["accuracy"] >= bounds["learned"]
        checks["needed"] = without["loss"] >= least
        evidence["sufficient"] = {"value": kept["loss"], "bound": most}
        evidence["needed"] = {"value": without["loss"], "bound": least}
    else:
        checks |= {"sufficient": False, "needed": False}
    if facts["accuracy"] < bounds["learned"]:
        verdict = "not learned"
    elif not (checks["few"] and checks["sufficient"] and checks["needed"]):
        verdict = "other"
    else:
        verdict = "characters" if checks["explained"] else "characters in part"
    return {"key_dimensions": size, "checks": checks, "evidence": evidence, "verdict": verdict}


def _claim(facts: Mapping[str, Any], components: Components) -> str:
    claim = f"{facts['right']:,} of {facts['pairs']:,} pairs right"
    if facts["verdict"] == "not learned":
        return f"{claim}, below {facts['thresholds']['learned']:.0%}: not learned, so no mechanism is named"
    keys = [str(key["component"]) for key in facts["keys"]]
    if not keys:
        return f"{claim}; no {components.noun} is similar to the logits, so {components.nouns} are not the mechanism"
    named = f" ({', '.join(keys)})" if len(keys) <= MOST_KEYS else ""
    noun = components.noun if len(keys) == 1 else components.nouns
    explained = f"explain {facts['logit_fve']:.1%} of the logit variance"
    claim += f"; the {components.function}s of {len(keys)} {noun}{named} {explained}"
    loss = {row["what"]: row["loss"] for row in reversed(facts["losses"]) if row["over"] == "all pairs"}
    claim += f"; loss {loss['full']:.2g}, with them alone {loss['restricted']:.2g}, without them {loss['excluded']:.3g}"
    claim += f" (chance {facts['chance_loss']:.3g})"
    if facts["verdict"] == "other":
        failed = ", ".join(FAILED[name] for name, holds in facts["checks"].items() if not holds)
        return f"{claim}; they are not named as the mechanism: {failed}"
    return claim if facts["verdict"] == "characters" else f"{claim}; the rest of the logits is unaccounted for"


# ---------------------------------------------------------------------- weights and activations


def _weight_facts(
    subject: Subject, weights: Weights, components: Components, keys: Sequence[Component]
) -> dict[str, Any]:
    labels = tuple(part.label for part in keys)
    facts: dict[str, Any] = {"gini": ginis(weights, components), "sum_of_squares": sum_of_squares(subject)}
    if "W_L" in weights.matrices and keys:
        norm = beyond(weights.matrices["W_L"], components, labels)
        facts["w_l_beyond_keys"] = {"norm": norm, "energy": norm**2}
    facts["constant"] = {name: float(components.shares(matrix)[0]) for name, matrix in weights.matrices.items()}
    return facts


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
    """Facts and panels of the neurons and the attention at the answer position."""
    neurons, attention = pairs.activations(subject)
    facts: dict[str, Any] = {"attention": _attention(pairs, components, attention)}
    panels = [attention_panel(pairs.task, facts["attention"])]
    if not neurons:
        return facts, panels
    fitted = {layer: best_fits(values, pairs, components) for layer, values in neurons.items()}
    facts["neurons"] = [neuron_facts(layer, fits, components, bounds) for layer, fits in fitted.items()]
    facts["keys_by_neurons"] = facts["neurons"][-1]["keys"]
    if weights.neurons_to_logits is not None:
        layer = max(neurons)
        last = LastNeurons(neurons[layer], weights.neurons_to_logits, logits, pairs, components)
        facts["directions"] = direction_fits(last, keys)
        facts["replacements"] = replacements(last, fitted[layer], keys, bounds["neuron"])
    return facts, [*neuron_panels(components, facts["neurons"], bounds["neuron"]), *panels]


def _attention(
    pairs: Pairs, components: Components, patterns: Float[Tensor, "layer head n n pos"]
) -> list[dict[str, Any]]:
    """Each head's attention from the answer position, over all pairs: mean and standard deviation of the share on each
    part of the prompt, and the component that fits the share on the first operand best.
    """
    parts, first = pairs.task.parts, pairs.task.operand_positions[0]
    rows = []
    for layer, heads in enumerate(patterns):
        fits = best_fits(heads[..., first].movedim(0, -1), pairs, components)
        for head, pattern in enumerate(heads):
            shares = {name: pattern[..., positions].sum(dim=-1) for name, positions in parts.items()}
            rows.append(
                {
                    "layer": layer,
                    "head": head,
                    "mean": {name: float(share.mean()) for name, share in shares.items()},
                    "spread": {name: float(share.std(correction=0)) for name, share in shares.items()},
                    "follows": components.parts[fits.part[head]].label if fits.alive[head] else None,
                    "fve": float(fits.share[head]),
                }
            )
    return rows


def for_report(subject: Subject, prompts: Prompts) -> dict[str, Any] | None:
    """The options of a report: applies to tasks with pairs of group elements."""
    return {} if has_pairs(subject) else None
