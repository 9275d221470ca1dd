"""MLP neurons on all pairs: the frequency that fits each best, and the loss if the fit replaces the neuron."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from algoscope.lenses.modular_arithmetic.group_characters import Component, Components
from algoscope.lenses.modular_arithmetic.logit_spectrum import Fits, OnPairs, by_product, in_block, part_of, scores
from algoscope.lenses.modular_arithmetic.operand_pairs import Pairs


def neuron_facts(layer: int, fits: Fits, components: Components, bounds: Mapping[str, float]) -> dict[str, Any]:
    """The components that fit the neurons of one layer. A neuron is fitted where its best component's block holds more
    than `bounds["neuron"]` of its variance; `keys` are the components of at least `bounds["cluster"]` of the fitted
    neurons, `counts` has every component of any of them. `fitted_share` counts neurons equally,
    `fitted_share_of_variance` weights them by their variance.

    `chance` is the share of variance that the smallest and the largest block hold in a random function.
    """
    fitted = fits.share > bounds["neuron"]
    n_fitted, n_pairs = int(fitted.sum()), components.order**2
    counts = np.bincount(fits.part[fitted], minlength=len(components.parts))[1:]
    clusters = [(part.label, int(count)) for part, count in zip(components.varying, counts, strict=True) if count]
    sizes = [((1 + part.size) ** 2 - 1) / (n_pairs - 1) for part in components.varying]
    return {
        "layer": layer,
        "neurons": len(fits.part),
        "dead": int((~fits.alive).sum()),
        "fitted": n_fitted,
        "fitted_share": n_fitted / len(fits.part),
        "fitted_share_of_variance": float(fits.variance[fitted].sum() / max(fits.variance.sum(), 1e-300)),
        "mean_fve": _mean(fits.share[fits.alive]),
        "mean_fve_of_fitted": _mean(fits.share[fitted]),
        "mean_share_of_product": _mean(fits.of_product[fits.alive]),
        "chance": [min(sizes), max(sizes)],
        "counts": [{"component": label, "neurons": count} for label, count in clusters],
        "keys": [label for label, count in clusters if count >= bounds["cluster"] * n_fitted],
        "each": [
            {"component": components.parts[part].label, "fve": float(share), "of_product": float(product)}
            for part, share, product in zip(fits.part, fits.share, fits.of_product, strict=True)
        ],
    }


def _mean(values: Float[np.ndarray, "some"]) -> float | None:
    return float(values.mean()) if len(values) else None


@dataclass(frozen=True, eq=False)
class LastNeurons:
    """The neurons of the last MLP on all pairs, their direct effect W_L on the logits, and the model's logits. A change
    of a neuron changes the logits by exactly W_L times that change.
    """

    values: Float[Tensor, "n n d_mlp"]
    to_logits: Float[Tensor, "d_mlp d_vocab"]
    logits: Float[Tensor, "n n d_vocab"]
    pairs: Pairs
    components: Components

    def loss(self, values: OnPairs, which: Int[Tensor, "some"] | slice = slice(None)) -> float:
        """Mean cross-entropy over all pairs, in nats, with some neurons set to these values."""
        changed = self.logits + (values - self.values[..., which]) @ self.to_logits[which]
        return float(scores(changed, self.pairs).loss.mean())

    def directions(self, keys: Sequence[Component]) -> Float[Tensor, "d_mlp direction"]:
        """The directions of neurons that W_L maps to the keys' functions of the answer."""
        rows = torch.from_numpy(self.components.rows_of(tuple(part.label for part in keys))).to(self.to_logits)
        return self.to_logits[:, self.pairs.answer] @ rows.mT


def replacements(last: LastNeurons, fits: Fits, keys: Sequence[Component], threshold: float) -> list[dict[str, Any]]:
    """The loss with the neurons, or the logits, replaced by the mechanism's predictions; `change` is relative to the
    model's own loss, None where that is 0. `replaced` names the replacement.
    """
    base = float(scores(last.logits, last.pairs).loss.mean())
    fitted = fits.share > threshold
    blocks, products, which = list[Tensor](), list[Tensor](), list[Tensor]()
    for number, part in enumerate(last.components.parts):
        those = torch.from_numpy(np.flatnonzero(fitted & (fits.part == number))).to(last.values.device)
        if not len(those):
            continue
        values = last.values[..., those]
        means = by_product(values, last.pairs.product)
        kept = part_of(means, last.components, [part.label]) + means.mean(dim=0)
        which.append(those)
        blocks.append(in_block(values, last.components, part))
        products.append(kept[last.pairs.product])
    losses: dict[str, float] = {}
    if which:
        those = torch.cat(which)
        losses["each fitted neuron by its polynomial in one component"] = last.loss(torch.cat(blocks, dim=-1), those)
        losses["each fitted neuron by the part that depends on the product alone"] = last.loss(
            torch.cat(products, dim=-1), those
        )
    if keys:
        axes, _ = torch.linalg.qr(last.directions(keys))
        projected = last.values @ axes @ axes.mT
        losses["all neurons by their projection on the key directions of W_L"] = last.loss(projected)
        losses["all neurons by the rest, without that projection"] = last.loss(last.values - projected)
        mean = last.logits.mean(dim=(0, 1))
        inside = mean + sum(in_block(last.logits, last.components, part) - mean for part in keys)
        losses["the logits by their part in the keys' functions of a, of b and of both"] = float(
            scores(inside, last.pairs).loss.mean()
        )
    return [
        {"replaced": name, "loss": loss, "change": loss / base - 1 if base > 0 else None}
        for name, loss in losses.items()
    ]


def direction_fits(last: LastNeurons, keys: Sequence[Component]) -> list[dict[str, Any]]:
    """For each key the share of the variance of the neurons, along W_L's directions for it, that its functions of the
    product explain: 1 = W_L reads cos and sin of w (a + b) and nothing else.
    """
    rows = []
    for part in keys:
        along = last.values @ torch.nn.functional.normalize(last.directions([part]), dim=0)
        means = by_product(along, last.pairs.product)
        inside = part_of(means, last.components, [part.label])
        total = (along - along.mean(dim=(0, 1))).pow(2).sum()
        held = inside.pow(2).sum() * last.pairs.order
        rows.append({"component": part.label, "fve": float(held / total) if total > 0 else None})
    return rows
