"""Logits and activations on all pairs (a, b) of a group, decomposed into frequencies or representations.

Sources: Nanda et al., arXiv 2301.05217; for groups Chughtai et al., arXiv 2302.03025. Everything is exact over all
pairs and in float64. A function of the product a b alone is stored as n rows instead of n^2.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from algoscope.lenses.modular_arithmetic.group_characters import Component, Components
from algoscope.lenses.modular_arithmetic.operand_pairs import Pairs, portions
from algoscope.networks.evaluation import cross_entropy, tokens_right
from algoscope.tasks.groups.group_tables import neutral

MOST_KEYS = 20  # of more, components are not named or measured one by one
OnPairs = Float[Tensor, "n n width"]
ByProduct = Float[Tensor, "n width"]
Parts = Float[np.ndarray, "part"]


def gini(values: Float[np.ndarray, "n"]) -> float:
    """Gini coefficient of non-negative values: 0 = all equal, near 1 = one holds the total.

    sum_i (2 i - n - 1) x_i / (n sum x), with x_1 .. x_n in ascending order. NaN where all are 0.
    """
    x, n = np.sort(values), len(values)
    return float(((2 * np.arange(1, n + 1) - n - 1) * x).sum() / (n * x.sum())) if x.sum() > 0 else float("nan")


# ---------------------------------------------------------------------- functions of the product


def by_product(values: OnPairs, product: Int[Tensor, "n n"]) -> ByProduct:
    """The mean over the pairs with each product: the nearest function of a b."""
    n = len(product)
    total = torch.zeros(n, values.shape[-1], dtype=values.dtype, device=values.device)
    return total.index_add_(0, product.flatten(), values.flatten(0, 1)) / n


def part_of(values: ByProduct, components: Components, labels: Sequence[int | str]) -> ByProduct:
    """The projection of functions on the group onto the components with these labels."""
    rows = torch.from_numpy(components.rows_of(tuple(labels))).to(values)
    return rows.mT @ (rows @ values)


# ---------------------------------------------------------------------- logits


@dataclass(frozen=True, eq=False)
class Fit:
    """Logits of the n answers, less their mean for each pair, fitted by sum_k alpha_k chi_k(a b c^-1).

    chi_k is the normalised character: cos(2 pi k (a + b - c) / n).
    `similarity` is the cosine between logits and character; its square is the share of the logit variance that the
    character explains, and the shares add up, as different characters are orthogonal.
    """

    similarity: Parts
    alpha: Parts


def fit_of(means: Float[Tensor, "n n"], square: float, components: Components) -> Fit:
    """The fit to logits with these means over the pairs of each product [product answer], and with this sum of squares
    of all n^3 logits, less each pair's mean over the answers.

    <logits, chi> = n sum_x chi(x) S(x), with S(x) the sum of the means over g c^-1 = x; each pair's mean cancels, as a
    character sums to 0 over the answers. The constant component has 0.
    """
    n = components.order
    along = np.bincount(components.quotients.ravel(), means.cpu().numpy().ravel(), minlength=n)
    characters = np.stack([part.normalised for part in components.parts])
    inner, lengths = n * (characters @ along), n**2 * (characters**2).sum(axis=1)
    inner[0] = 0.0
    norm = np.sqrt(square * lengths)
    similarity = np.divide(inner, norm, out=np.zeros_like(inner), where=norm > 0)
    return Fit(similarity, inner / lengths)


def spread(logits: OnPairs, answer: Int[Tensor, "answer"]) -> float:
    """The sum of squares of the answers' logits, less their mean for each pair."""
    n = len(logits)
    return sum(float(logits[some][..., answer].var(dim=-1, correction=0).sum()) * n for some in portions(n))


@dataclass(frozen=True, eq=False)
class Scores:
    """Cross-entropy in nats, and whether the answer is right, for every pair."""

    loss: Float[Tensor, "n n"]
    right: Bool[Tensor, "n n"]

    def over(self, those: Bool[Tensor, "n n"]) -> tuple[float, float]:
        """Mean loss and accuracy over some pairs."""
        return float(self.loss[those].mean()), float(self.right[those].double().mean())


def scores(logits: OnPairs, pairs: Pairs, without: ByProduct | None = None) -> Scores:
    """For all pairs, optionally with a function of the product subtracted from the logits."""
    loss, right = [], []
    for some in portions(pairs.order):
        product = pairs.product[some]
        kept = logits[some] if without is None else logits[some] - without[product]
        target = pairs.answer[product]
        loss.append(cross_entropy(kept, target))
        right.append(tokens_right(kept, target))
    return Scores(torch.cat(loss), torch.cat(right))


def scores_by_product(logits: ByProduct, pairs: Pairs) -> Scores:
    """For logits that depend on the product alone."""
    loss = cross_entropy(logits, pairs.answer)
    right = tokens_right(logits, pairs.answer)
    return Scores(loss[pairs.product], right[pairs.product])


def restricted(means: ByProduct, components: Components, labels: Sequence[int | str]) -> ByProduct:
    """Logits [product d_vocab] restricted to the functions of the product in these components, and the mean over all
    pairs.
    """
    return part_of(means, components, labels) + means.mean(dim=0)


@dataclass(frozen=True)
class Bound:
    """A bound that proves answers from the fit alone. The residual r is the logits less the fit.

    For the pair (a, b) and a wrong answer c the margin of the fit is sum_k alpha_k (1 - chi_k(a b c^-1)), at least
    `ideal_margin`; r can reduce it by at most its range over the answers. So where that range is below the ideal
    margin, the answer is right. `worst_range` is the largest range, `slack` = ideal_margin - worst_range, `proved` the
    number of pairs with a smaller range. Sharper, and as sound: r would have to raise a wrong answer against the right
    one by the ideal margin; `worst_rise` is its largest such rise, with `slack_of_rise` and `proved_by_rise`. `others`
    is the smallest margin of the answer over the logits of tokens that are not elements, checked directly (None: no
    such tokens).
    """

    ideal_margin: float
    worst_range: float
    slack: float
    proved: int
    worst_rise: float
    slack_of_rise: float
    proved_by_rise: int
    others: float | None


def bound_of(logits: OnPairs, pairs: Pairs, components: Components, fit: Fit, keys: Sequence[Component]) -> Bound:
    """The bound for the fit with some components."""
    alpha = {part.label: value for part, value in zip(components.parts, fit.alpha, strict=True)}
    fitted = sum((alpha[part.label] * part.normalised for part in keys), start=np.zeros(components.order))
    ideal = torch.from_numpy(fitted[components.quotients]).to(logits)  # [product answer]
    one = neutral(components.table)
    margin = float((fitted[one] - np.delete(fitted, one)).min())
    others = torch.ones(logits.shape[-1], dtype=torch.bool, device=logits.device)
    others[pairs.answer] = False
    ranges, rises, other_margins = list[Tensor](), list[Tensor](), list[Tensor]()
    for some in portions(pairs.order):
        chunk, product = logits[some], pairs.product[some]
        residual = chunk[..., pairs.answer] - ideal[product]
        most = residual.amax(dim=-1)
        ranges.append(most - residual.amin(dim=-1))
        rises.append(most - residual.gather(-1, product[..., None])[..., 0])
        if others.any():
            right = chunk.gather(-1, pairs.answer[product][..., None])[..., 0]
            other_margins.append(right - chunk[..., others].amax(dim=-1))
    reach, rise = torch.cat(ranges), torch.cat(rises)
    ahead = torch.cat(other_margins) if other_margins else None
    safe = torch.ones_like(reach, dtype=torch.bool) if ahead is None else ahead > 0
    return Bound(
        ideal_margin=margin,
        worst_range=float(reach.max()),
        slack=margin - float(reach.max()),
        proved=int((safe & (reach < margin)).sum()),
        worst_rise=float(rise.max()),
        slack_of_rise=margin - float(rise.max()),
        proved_by_rise=int((safe & (rise < margin)).sum()),
        others=None if ahead is None else float(ahead.min()),
    )


# ---------------------------------------------------------------------- functions of both elements


def transform(values: OnPairs, components: Components) -> Float[Tensor, "row row width"]:
    """Y[f, g] = sum_{a,b} F[f, a] F[g, b] X[a, b], F the orthonormal basis: the two-dimensional Fourier transform."""
    basis = torch.from_numpy(components.basis).to(values)
    along_b = basis @ values  # [a row width]
    return (basis @ along_b.flatten(1)).unflatten(1, along_b.shape[1:])


def energies(values: OnPairs, components: Components) -> Float[Tensor, "part part width"]:
    """The sum of squares of each function of (a, b), by component along a and component along b."""
    which = torch.from_numpy(components.part_of_row).to(values.device)
    power, n_parts = transform(values, components) ** 2, len(components.parts)
    along_a = power.new_zeros(n_parts, *power.shape[1:]).index_add_(0, which, power)
    return power.new_zeros(n_parts, n_parts, power.shape[-1]).index_add_(1, which, along_a)


@dataclass(frozen=True, eq=False)
class Fits:
    """For each function of (a, b) the component that fits it best: the one that, with the constant, explains most of
    its variance by products of a function of a and one of b (index block {0, cos, sin} x {0, cos, sin}).

    `part` is its number, `share` the share of the variance it holds (0 where the function is constant), `of_product`
    the share held by functions of the product a b in that component, `variance` over all pairs, `alive` whether the
    function varies at all.
    """

    part: Int[np.ndarray, "width"]
    share: Float[np.ndarray, "width"]
    of_product: Float[np.ndarray, "width"]
    variance: Float[np.ndarray, "width"]
    alive: Bool[np.ndarray, "width"]


def best_fits(values: OnPairs, pairs: Pairs, components: Components) -> Fits:
    """The best component of each function."""
    energy = energies(values, components)
    number = torch.arange(1, len(components.parts), device=values.device)
    blocks = energy[0, 1:] + energy[1:, 0] + energy[number, number]
    total = energy.sum(dim=(0, 1)) - energy[0, 0]
    alive = total > 1e-12 * energy[0, 0].clamp(min=1e-30)
    best = blocks.argmax(dim=0)
    held = blocks.gather(0, best[None])[0]
    basis = torch.from_numpy(components.basis).to(values)
    power = (basis @ by_product(values, pairs.product)) ** 2 * pairs.order
    which = torch.from_numpy(components.part_of_row).to(values.device)
    products = power.new_zeros(len(components.parts), power.shape[-1]).index_add_(0, which, power)
    held_by_product = products.gather(0, best[None] + 1)[0]
    share, of_product = (torch.where(alive, part / total, 0.0).cpu().numpy() for part in (held, held_by_product))
    variance = (total / pairs.order**2).cpu().numpy()
    return Fits((best + 1).cpu().numpy(), share, of_product, variance, alive.cpu().numpy())


def in_block(values: OnPairs, components: Components, part: Component) -> OnPairs:
    """The part of functions of (a, b) in a component's block, the constant included: a polynomial of degree 2 in its
    functions of a and of b.
    """
    rows = torch.from_numpy(np.concatenate([components.basis[:1], components.basis[part.rows]])).to(values)
    small = torch.einsum("fa,gb,abw->fgw", rows, rows, values)
    return torch.einsum("fa,gb,fgw->abw", rows, rows, small)
