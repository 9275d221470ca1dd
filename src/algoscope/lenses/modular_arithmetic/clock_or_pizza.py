"""The clock lens: does a model of modular addition multiply angles (clock), or measure a vector sum (pizza)?

Everything is measured over all pairs, in float64, with the operation written as addition modulo n (`Structure`): so a -
b and a * b are covered too, with a and b the group elements of the tokens. Definitions: Zhong et al., arXiv 2306.17844.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from algoscope.core.errors import ConfigError, TaskMismatchError
from algoscope.core.finding import Finding
from algoscope.core.renaming import renamed_options
from algoscope.lenses.inputs.prompts import Prompts
from algoscope.lenses.modular_arithmetic._circles import (
    READINGS,
    Circle,
    Cube,
    IsolatedCircle,
    Logits,
    Vectors,
    circles_of,
    circularity,
    distance_irrelevance,
    forms,
)
from algoscope.lenses.modular_arithmetic._clock_panels import ABOUT, panels_of, tables_of
from algoscope.lenses.modular_arithmetic.operand_pairs import has_pairs
from algoscope.networks.build import build
from algoscope.networks.taps import Tap
from algoscope.networks.transformer import Transformer
from algoscope.runs.run_folder import Run
from algoscope.subjects.edits import Patch
from algoscope.subjects.opening import open_subject
from algoscope.subjects.subject import Subject
from algoscope.tasks.base import Task
from algoscope.tasks.groups.binary import Binary
from algoscope.tasks.groups.group_tables import Structure

LARGEST = 256  # largest n: there are n^3 logits
PORTION = 4096  # inputs in one batch
CONTROLS = 3  # untrained models


@dataclass(frozen=True)
class Bounds:
    """The thresholds of the verdict: see `clock`."""

    accurate: float
    circular: float
    alike: float
    apart: float
    fits: float


@renamed_options(n_triples="n_inputs")
def clock(
    subject: str | Run | Subject,
    *,
    n_inputs: int = 2000,
    seed: int = 0,
    accurate: float = 0.99,
    circular: float = 0.8,
    alike: float = 0.98,
    apart: float = 0.8,
    fits: float = 0.8,
    runs_dir: str | None = None,
) -> Finding:
    """Decide whether a model of addition modulo n is a clock, a pizza, neither, or has not learned the task.

    A clock multiplies its operands' angles: its logits are cos w(a+b-c). A pizza adds the operands as vectors and
    measures the length of the sum, which is small where they are opposite on the circle: |cos w(a-b)/2| cos w(a+b-c).

    A model is a pizza if both operands have the same gradient and each circle alone gives a pizza's logits, a clock if
    the gradients differ and each circle alone gives a clock's; `judge` states the five rules.

    Args:
        subject: a model of addition (or of an operation that is one in another order) modulo at most 256.
        n_inputs: how many random triples (a, b, c) are used for the gradients.
        seed: seed of the random triples.
        accurate: least accuracy over all pairs of a learned model.
        circular: least circularity of the number embeddings.
        alike: least symmetricity of operands with the same effect.
        apart: symmetricity below which the operands have different effects.
        fits: least share of the logits' variance that a form must explain, of one circle or of all.
        runs_dir: where `run:NAME` is looked up; by default as for every command.
    Returns:
        A finding with panels `circles alone` [circle form] (shares; 0 = explains nothing, 1 = all), `gradients` [model
        cosine] (histograms), `right logit` [distance first] (the logit of the right answer for a and a + d, less its
        mean over all pairs: rows of one colour where it depends on d alone), `circles` [circle number component]
        (coordinates of the numbers; at most 8 circles are drawn). Facts, over all pairs and in float64: `symmetricity`
        s_g, the mean cosine between the gradients of the logit of c with respect to the embeddings of a and of b (1 =
        the operands have the same effect), with `symmetricity_error`, its standard error; `untrained`, the same of
        three untrained models of this shape, a control because constant attention alone makes it 1;
        `distance_irrelevance` q; `circularity`; `circles`, for each circle the share `fits` of its logits' variance
        that each form explains when only this circle and the mean are left in the embeddings, and the form that it
        `reads_as`, the best one if its share is at least `fits`; `isolated`, those shares over the logits of all
        circles; `cosines`, the share of the full model's logits that the clock forms of its circles explain (high in a
        pizza too, whose accompanying circles compensate its weak pairs); `verdict`, `reason`, `accuracy`, `bounds`.
    Raises:
        TaskMismatchError: for a task that is not addition modulo a number of at most 256 elements.
        ConfigError: for fewer than 2 triples.
    Source:
        Zhong et al., arXiv 2306.17844.

    Example:
        >>> import algoscope as ag
        >>> ag.lenses.clock("planted:pizza", n_inputs=100)["verdict"]
        'pizza'
    """
    subject = open_subject(subject, runs_dir=runs_dir)
    task, structure = _addition(subject)
    if n_inputs < 2:
        raise ConfigError(f"n_inputs is {n_inputs}: at least 2 triples are needed for a mean and its standard error")
    exact = subject.to_dtype(torch.float64)
    bounds = Bounds(accurate, circular, alike, apart, fits)
    logits = pair_logits(exact, task)
    cube = cube_of(logits, structure)
    models = [exact.model, *(build(subject.cfg, seed).double().requires_grad_(False) for seed in range(CONTROLS))]
    cosines = [gradient_cosines(model, task, structure, n_inputs, seed) for model in models]
    numbers = _numbers(exact, structure)
    isolated = [_isolated(exact, task, structure, circle) for circle in circles_of(numbers)]
    facts = _facts(numbers, cube, cosines, isolated, fits) | {"accuracy": right_share(logits, task)}
    verdict, reason = judge(facts, bounds)
    facts = {"verdict": verdict, "reason": reason, **facts, "bounds": vars(bounds)}
    return subject.finding(
        "clock",
        f"{verdict}: {reason}",
        facts,
        panels_of(structure, cube, cosines, isolated),
        about=ABOUT,
        tables=tables_of(facts),
        seed=seed,
    )


def is_addition(task: Task) -> bool:
    """Whether the lens applies to models of the task."""
    structure = _cyclic(task)
    return structure is not None and structure.order <= LARGEST


def _cyclic(task: Task) -> Structure | None:
    """The task's operation as addition modulo a number, where it is that."""
    structure = task.structure() if isinstance(task, Binary) else None
    return structure if structure is not None and structure.is_cyclic_sum else None


def _addition(subject: Subject) -> tuple[Binary, Structure]:
    task, structure = subject.task, _cyclic(subject.task)
    if not isinstance(task, Binary) or structure is None:
        raise TaskMismatchError(
            f"{subject.name} does not add modulo a number, so it is neither clock nor pizza: give a model of the task "
            "modular (a * b: with a prime modulus), such as planted:clock"
        )
    if structure.order > LARGEST:
        raise TaskMismatchError(
            f"{subject.name} has {structure.order:,} elements and the cube of that many logits: at most {LARGEST} are "
            "possible"
        )
    return task, structure


# ---------------------------------------------------------------------- measures


def pair_logits(
    subject: Subject, task: Binary, embedding: Float[Tensor, "d_vocab d_model"] | None = None
) -> Float[np.ndarray, "order order n_logits"]:
    """The answer's logits for every pair of operands; optionally with other token embeddings."""
    portions = []
    for tokens in task.at(torch.arange(task.domain_size, device=subject.device)).split(PORTION):
        read = tokens[:, : task.prompt_length]
        edits = [] if embedding is None else [Patch("embed", value=embedding[read])]
        portions.append(subject.run(read, edits=edits, at=task.answer_slice)[0][:, 0])
    return torch.cat(portions).unflatten(0, (task.order, task.order)).cpu().numpy()


def cube_of(logits: Float[np.ndarray, "order order n_logits"], structure: Structure) -> Cube:
    """The logits by group elements: entry [g, h, k] is the logit of element k for the operands g and h."""
    return logits[structure.first[:, None], structure.second][:, :, structure.answer]


def right_share(logits: Float[np.ndarray, "order order n_logits"], task: Binary) -> float:
    """The accuracy over all pairs."""
    number = torch.arange(task.order)
    right = task.product(number.repeat_interleave(task.order), number.repeat(task.order))
    return float((logits.argmax(axis=-1).flatten() == right.numpy()).mean())


class _Leaf(Tap):
    """Makes each position's token embedding a separate variable, also where two positions hold the same token."""

    kinds, layers = frozenset({"embed"}), frozenset({None})

    def __call__(self, kind: str, layer: int | None, value: Tensor) -> Tensor:
        if kind != "embed":
            return value
        self.vectors = value.detach().requires_grad_()
        return self.vectors


def gradient_cosines(
    model: Transformer, task: Binary, structure: Structure, n_inputs: int, seed: int
) -> Float[np.ndarray, "triple"]:
    """For random elements a, b, c: the cosine between the gradients of the logit of c (any c, not only the answer) with
    respect to the embeddings of a and of b. Their mean is the gradient symmetricity s_g. Triples with a zero gradient
    are left out.
    """
    drawn = torch.randint(structure.order, (3, n_inputs), generator=torch.Generator().manual_seed(seed))
    orders = (structure.first, structure.second, structure.answer)
    device = model.W_U.device
    first, second, answer = (torch.from_numpy(o)[some].to(device) for o, some in zip(orders, drawn, strict=True))
    leaf = _Leaf()
    with torch.enable_grad():
        logits = model(task.sequences(first, second)[:, : task.prompt_length], at=task.answer_slice, tap=leaf)[:, 0]
        logits.gather(1, answer[:, None]).sum().backward()
    assert leaf.vectors.grad is not None
    by_a, by_b = (leaf.vectors.grad[:, pos] for pos in task.operand_positions)
    size = by_a.norm(dim=-1) * by_b.norm(dim=-1)
    return ((by_a * by_b).sum(dim=-1) / size)[size > 0].cpu().numpy()


def _numbers(subject: Subject, structure: Structure) -> Vectors:
    """The token embeddings of the elements, in their order as first operand."""
    return subject.token_embedding()[torch.from_numpy(structure.first)].cpu().numpy()


def _isolated(subject: Subject, task: Binary, structure: Structure, circle: Circle) -> IsolatedCircle:
    embedding = subject.token_embedding().clone()
    embedding[torch.from_numpy(structure.first)] = torch.from_numpy(circle.vectors).to(embedding.device)
    logits = Logits.of(cube_of(pair_logits(subject, task, embedding), structure))
    fits = {
        name: max((logits.explained(form) for form in several), default=0.0)
        for name, several in forms(circle.frequency, structure.order).items()
    }
    return IsolatedCircle(circle, logits.spread, fits)


# ---------------------------------------------------------------------- verdict


def _facts(
    numbers: Vectors,
    cube: Cube,
    cosines: Sequence[Float[np.ndarray, "_triple"]],
    isolated: Sequence[IsolatedCircle],
    fits: float,
) -> dict[str, Any]:
    trained, *untrained = cosines
    logits = Logits.of(cube)
    sizes = np.array([one.size**2 for one in isolated])
    together = {
        name: float(np.dot(sizes, [one.best[name] for one in isolated]) / sizes.sum()) if sizes.sum() > 0 else 0.0
        for name in READINGS
    }
    return {
        "symmetricity": float(trained.mean()) if len(trained) else None,
        "symmetricity_error": float(trained.std() / np.sqrt(len(trained))) if len(trained) else None,
        "triples": len(trained),
        "untrained": [float(each.mean()) if len(each) else None for each in untrained],
        "distance_irrelevance": distance_irrelevance(cube),
        "circularity": circularity(numbers),
        "cosines": sum(logits.explained(forms(one.circle.frequency, len(cube))["clock"][0]) for one in isolated),
        "isolated": together,
        "circles": [
            {
                "frequency": one.circle.frequency,
                "components": list(one.circle.components),
                "variance": one.circle.variance,
                "purity": one.circle.purity,
                "size": one.size,
                "fits": dict(one.fits),
                "reads_as": one.reads_as(fits),
            }
            for one in isolated
        ],
    }


def judge(facts: Mapping[str, Any], bounds: Bounds) -> tuple[str, str]:
    """The verdict and its reason, by the first rule that holds:

    1. `not learned`: less than `accurate` of all pairs are right.
    2. `neither`: circularity below `circular`; the rest presumes circles. Random embeddings have 0.1, memorised ones up
       to 0.5. The published tables keep runs from 0.995 on; the bound here is lower, because the components of two
       circles of nearly equal size are mixtures of both.
    3. `pizza`: s_g of at least `alike`, and with one circle at a time the pizza explains more than the clock, and
       with the accompanying circles at least `fits`.
    4. `clock`: s_g below `apart`, with one circle at a time the clock explains more than the pizza, and `cosines` is at
       least `fits`.
    5. `neither`.

    q is not used: among published pizzas it goes up to 0.6. The bounds 0.98 and 0.8 lie in the gap of the published
    runs: with constant attention the median is 0.994, with full attention 0.43.
    """
    symmetricity, isolated = facts["symmetricity"], facts["isolated"]
    if facts["accuracy"] < bounds.accurate:
        return "not learned", f"{facts['accuracy']:.1%} of all pairs are right"
    if facts["circularity"] < bounds.circular:
        return "neither", f"the number embeddings do not lie on circles (circularity {facts['circularity']:.3f})"
    if symmetricity is None:
        return "neither", "the logits do not depend on the operands' embeddings"
    explained = ", ".join(f"{name} {isolated[name]:.0%}" for name in READINGS)
    numbers = f"s_g {symmetricity:.3f}; one circle at a time: {explained} of the logits' variance"
    if symmetricity >= bounds.alike:
        fitting = isolated["pizza"] + isolated["accompanying"] >= bounds.fits
        if fitting and isolated["pizza"] > isolated["clock"]:
            return "pizza", f"both operands have the same gradient ({numbers})"
        return "neither", f"both operands have the same gradient, but single circles are not pizzas ({numbers})"
    if symmetricity < bounds.apart:
        numbers += f"; cosines {facts['cosines']:.0%} of all logits"
        if isolated["clock"] > isolated["pizza"] and facts["cosines"] >= bounds.fits:
            return "clock", f"the operands have different gradients ({numbers})"
        return "neither", f"the operands have different gradients, but the logits are not a clock's ({numbers})"
    return "neither", f"the gradients of the operands are between those of clocks and pizzas ({numbers})"


def for_report(subject: Subject, prompts: Prompts) -> dict[str, Any] | None:
    """The options of a report: applies to modular addition."""
    return {} if has_pairs(subject) and is_addition(subject.task) else None
