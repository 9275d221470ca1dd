"""The clock lens: does a model of modular addition multiply its operands' angles, or measure the length of their sum?

Everything is asked of all pairs, in float64, with the operation written as addition modulo n (`Structure`): so a - b
and a * b are covered too, a and b then being the elements of the group that the tokens stand for.
Definitions: Zhong et al., arXiv 2306.17844.
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
from algoscope.core.panel import Axis, Panel
from algoscope.lenses.inputs.prompts import Prompts
from algoscope.lenses.modular_arithmetic.circles import (
    FORMS,
    Circle,
    Cube,
    Logits,
    Vectors,
    by_distance,
    circles_of,
    circularity,
    distance_irrelevance,
    forms,
)
from algoscope.lenses.modular_arithmetic.operand_pairs import has_pairs
from algoscope.networks.build import build
from algoscope.networks.transformer import Tap, Transformer
from algoscope.runs.run_folder import Run
from algoscope.subjects.edits import Patch
from algoscope.subjects.opening import open_subject
from algoscope.subjects.subject import Subject
from algoscope.tasks.base import Task
from algoscope.tasks.groups.binary import Binary
from algoscope.tasks.groups.group_tables import Structure

LARGEST = 256  # elements: there are the cube of that many logits
PORTION = 4096  # inputs that run together
CONTROLS = 3  # untrained models
SHOWN = 8  # circles that are drawn
BINS = 40  # of cosines
ISOLATED = ("clock", "pizza", "accompanying")  # what a circle may read as


@dataclass(frozen=True)
class Bounds:
    """What the verdict rests on: see `clock`."""

    accurate: float
    circular: float
    alike: float
    apart: float
    fits: float


@dataclass(frozen=True)
class Alone:
    """What a model says that is left with one circle: how much its logits vary, and the share of that which each form
    explains.
    """

    circle: Circle
    size: float
    fits: Mapping[str, float]

    @property
    def best(self) -> dict[str, float]:
        """By what a circle may read as: the two ways to write the pizza are one."""
        return {
            **{name: self.fits[name] for name in ISOLATED},
            "pizza": max(self.fits["pizza"], self.fits["whole pizza"]),
        }

    def reads_as(self, least: float) -> str:
        """The form that explains most; `unclear` where that is less than `least`."""
        name = max(self.best, key=self.best.__getitem__)
        return name if self.best[name] >= least else "unclear"


def clock(
    subject: str | Run | Subject,
    *,
    n_triples: int = 2000,
    seed: int = 0,
    accurate: float = 0.99,
    circular: float = 0.8,
    alike: float = 0.98,
    apart: float = 0.8,
    fits: float = 0.8,
    runs_dir: str | None = None,
) -> Finding:
    """Say whether a model of addition modulo n is a clock, a pizza, neither of the two, or has not learned it.

    A clock multiplies its operands' angles: its logits are cos w(a+b-c). A pizza adds the operands up and measures the
    length of the sum, which is small where they stand across from each other: |cos w(a-b)/2| cos w(a+b-c).

    Facts, over all pairs and in float64:

    - `symmetricity` s_g: the mean, over `n_triples` random (a, b, c), of the cosine between the gradients of the logit
      of c by the embedded tokens of a and of b; 1: the operands have one and the same effect. `symmetricity_error` is
      its standard error. `untrained` is the same of three untrained models of this shape: a control, because constant
      attention alone makes it 1.
    - `distance_irrelevance` q and `circularity`: see the functions.
    - `circles`: the model runs again with two principal components of its number embeddings, one circle of one
      frequency, and their mean. `fits`: the share of its logits' variance that each of `FORMS` explains. It `reads_as`
      the one that explains most, if that is at least `fits`.
    - `isolated`: the same shares over the logits of all circles together.
    - `cosines`: the share of the whole model's logits that the clock forms of its circles explain. It is high in a
      pizza too, whose accompanying circles make up for what is weak.

    `verdict`, the first rule that holds; `reason` is its sentence:

    1. `not learned`: less than `accurate` of all pairs are right.
    2. `neither`: circularity below `circular`; the rest presumes circles. Random embeddings have 0.1, memorised ones up
       to 0.5. The published tables keep runs from 0.995 on; here less will do, because components of two circles of
       nearly one size are mixtures of both.
    3. `pizza`: s_g from `alike` on, and with one circle at a time the pizza explains more than the clock, and with the
       accompanying circles at least `fits`.
    4. `clock`: s_g below `apart`, with one circle at a time the clock explains more than the pizza, and `cosines` is at
       least `fits`.
    5. `neither`.

    q decides nothing: among published pizzas it goes up to 0.6. The bounds 0.98 and 0.8 lie in the gap of the published
    runs: with constant attention the median is 0.994, with full attention 0.43.

    Panels: `circles alone` [circle form], shares, 0 = explains nothing, 1 = all; `gradients` [model cosine],
    histograms; `right logit` [distance a]: the logit of the right answer for a and a + d, less its mean over all pairs,
    rows of one colour where d alone matters; `circles` [circle number component], where the numbers lie. At most 8
    circles are drawn.

    Raises TaskMismatchError for a task that is not addition modulo a number of at most 256 elements, ConfigError for
    fewer than 2 triples.
    """
    subject = open_subject(subject, runs_dir=runs_dir)
    task, structure = _addition(subject)
    if n_triples < 2:
        raise ConfigError(f"n_triples is {n_triples}: at least 2 are needed for a mean and its error")
    exact = subject.to_dtype(torch.float64)
    bounds = Bounds(accurate, circular, alike, apart, fits)
    logits = pair_logits(exact, task)
    cube = cube_of(logits, structure)
    models = [exact.model, *(build(subject.cfg, seed).double().requires_grad_(False) for seed in range(CONTROLS))]
    cosines = [gradient_cosines(model, task, structure, n_triples, seed) for model in models]
    alone = [_alone(exact, task, structure, circle) for circle in circles_of(_numbers(exact, structure))]
    facts = _facts(_numbers(exact, structure), cube, cosines, alone, fits) | {"accuracy": right_share(logits, task)}
    verdict, reason = judge(facts, bounds)
    return Finding(
        kind="clock",
        claim=f"{verdict}: {reason}",
        facts={"subject": subject.name, "verdict": verdict, "reason": reason, **facts, "bounds": vars(bounds)},
        panels=_panels(structure, cube, cosines, alone),
        provenance={"subject": subject.name, "weights_sha256": subject.weights_sha256, "seed": seed},
    )


def is_addition(task: Task) -> bool:
    """Whether the lens has something to say about models of the task."""
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
            f"{subject.name} does not add modulo a number, so it is no clock and no pizza: give a model of the task "
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
    """The answer's logits for every pair of operands; with other token embeddings where they are given."""
    portions = []
    for tokens in task.at(torch.arange(task.domain_size, device=subject.device)).split(PORTION):
        read = tokens[:, : task.prompt_length]
        edits = [] if embedding is None else [Patch("embed", value=embedding[read])]
        portions.append(subject.run(read, edits=edits, at=task.answer_slice)[0][:, 0])
    return torch.cat(portions).unflatten(0, (task.order, task.order)).cpu().numpy()


def cube_of(logits: Float[np.ndarray, "order order n_logits"], structure: Structure) -> Cube:
    """The logits of group elements: at [g, h, k] that of element k for the operands g and h."""
    return logits[structure.first[:, None], structure.second][:, :, structure.answer]


def right_share(logits: Float[np.ndarray, "order order n_logits"], task: Binary) -> float:
    """The share of pairs whose largest logit is that of the right answer."""
    number = torch.arange(task.order)
    right = task.product(number.repeat_interleave(task.order), number.repeat(task.order))
    return float((logits.argmax(axis=-1).flatten() == right.numpy()).mean())


class _Leaf(Tap):
    """Makes each position's token embedding a variable of its own, also where two positions hold one token."""

    kinds, layers = frozenset({"embed"}), frozenset({None})

    def __call__(self, kind: str, layer: int | None, value: Tensor) -> Tensor:
        if kind != "embed":
            return value
        self.vectors = value.detach().requires_grad_()
        return self.vectors


def gradient_cosines(
    model: Transformer, task: Binary, structure: Structure, n_triples: int, seed: int
) -> Float[np.ndarray, "triple"]:
    """For random elements a, b, c: the cosine between the gradients of the logit of c (any c, not the answer alone) by
    the embedded tokens of a and of b. Their mean is the gradient symmetricity s_g. Left out where a gradient is 0.
    """
    drawn = torch.randint(structure.order, (3, n_triples), generator=torch.Generator().manual_seed(seed))
    orders = (structure.first, structure.second, structure.answer)
    device = model.W_U.device
    first, second, said = (torch.from_numpy(o)[some].to(device) for o, some in zip(orders, drawn, strict=True))
    leaf = _Leaf()
    with torch.enable_grad():
        logits = model(task.sequences(first, second)[:, : task.prompt_length], at=task.answer_slice, tap=leaf)[:, 0]
        logits.gather(1, said[:, None]).sum().backward()
    assert leaf.vectors.grad is not None
    by_a, by_b = (leaf.vectors.grad[:, place] for place in task.places)
    size = by_a.norm(dim=-1) * by_b.norm(dim=-1)
    return ((by_a * by_b).sum(dim=-1) / size)[size > 0].cpu().numpy()


def _numbers(subject: Subject, structure: Structure) -> Vectors:
    """The token embeddings of the elements, in their order as first operand."""
    return subject.token_embedding()[torch.from_numpy(structure.first)].cpu().numpy()


def _alone(subject: Subject, task: Binary, structure: Structure, circle: Circle) -> Alone:
    embedding = subject.token_embedding().clone()
    embedding[torch.from_numpy(structure.first)] = torch.from_numpy(circle.vectors).to(embedding.device)
    logits = Logits.of(cube_of(pair_logits(subject, task, embedding), structure))
    fits = {
        name: max((logits.explained(form) for form in several), default=0.0)
        for name, several in forms(circle.frequency, structure.order).items()
    }
    return Alone(circle, logits.spread, fits)


# ---------------------------------------------------------------------- verdict


def _facts(
    numbers: Vectors, cube: Cube, cosines: Sequence[Float[np.ndarray, "_triple"]], alone: Sequence[Alone], fits: float
) -> dict[str, Any]:
    own, *untrained = cosines
    logits = Logits.of(cube)
    sizes = np.array([one.size**2 for one in alone])
    together = {
        name: float(np.dot(sizes, [one.best[name] for one in alone]) / sizes.sum()) if sizes.sum() > 0 else 0.0
        for name in ISOLATED
    }
    return {
        "symmetricity": float(own.mean()) if len(own) else None,
        "symmetricity_error": float(own.std() / np.sqrt(len(own))) if len(own) else None,
        "triples": len(own),
        "untrained": [float(each.mean()) if len(each) else None for each in untrained],
        "distance_irrelevance": distance_irrelevance(cube),
        "circularity": circularity(numbers),
        "cosines": sum(logits.explained(forms(one.circle.frequency, len(cube))["clock"][0]) for one in alone),
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
            for one in alone
        ],
    }


def judge(facts: Mapping[str, Any], bounds: Bounds) -> tuple[str, str]:
    """The verdict and its reason, by the rules of `clock`."""
    symmetricity, isolated = facts["symmetricity"], facts["isolated"]
    if facts["accuracy"] < bounds.accurate:
        return "not learned", f"{facts['accuracy']:.1%} of all pairs are right"
    if facts["circularity"] < bounds.circular:
        return "neither", f"its numbers do not stand on circles (circularity {facts['circularity']:.3f})"
    if symmetricity is None:
        return "neither", "its logits do not depend on its operands' embeddings"
    said = f"s_g {symmetricity:.3f}"
    explains = ", ".join(f"{name} {isolated[name]:.0%}" for name in ISOLATED)
    said += f"; one circle at a time: {explains} of the logits' variance"
    if symmetricity >= bounds.alike:
        fitting = isolated["pizza"] + isolated["accompanying"] >= bounds.fits
        if fitting and isolated["pizza"] > isolated["clock"]:
            return "pizza", f"its operands have one effect ({said})"
        return "neither", f"its operands have one effect, but its circles are no pizzas ({said})"
    if symmetricity < bounds.apart:
        said += f"; cosines {facts['cosines']:.0%} of all logits"
        if isolated["clock"] > isolated["pizza"] and facts["cosines"] >= bounds.fits:
            return "clock", f"its operands have effects of their own ({said})"
        return "neither", f"its operands have effects of their own, but its logits are not those of clocks ({said})"
    return "neither", f"between the two ({said})"


# ---------------------------------------------------------------------- panels


def _panels(
    structure: Structure,
    cube: Cube,
    cosines: Sequence[Float[np.ndarray, "_triple"]],
    alone: Sequence[Alone],
) -> tuple[Panel, ...]:
    edges = np.linspace(-1, 1, BINS + 1)
    of_both = (cosines[0], np.concatenate(cosines[1:]))
    counts = [np.histogram(values.clip(-1, 1), edges)[0] / max(1, len(values)) for values in of_both]
    middles = tuple(np.round((edges[:-1] + edges[1:]) / 2, 3).tolist())
    gradients = Panel(
        name="gradients",
        title="do the operands have one effect",
        axes=(Axis("model", ("this model", "untrained")), Axis("cosine", middles, "cosine between the gradients")),
        values=np.stack(counts),
        unit="share of triples",
        zero="no triple has this cosine",
        one="all triples have it",
        view="bars",
        scale="unit",
    )
    number = tuple(range(len(cube)))
    right = by_distance(cube)
    tenth = abs(float(right.mean())) / 10  # smaller differences stay pale
    right_logit = Panel(
        name="right logit",
        title="logit of the right answer",
        axes=(
            Axis("distance", number, "distance of the operands, b - a"),
            Axis("first", number, "first operand, a"),
        ),
        values=right - right.mean(),
        unit="logits above the mean",
        zero="as much as on the mean of all pairs",
        view="heatmap",
        scale="signed",
        span=(-tenth, tenth),
    )
    if not alone:
        return gradients, right_logit
    circle = Axis("circle", tuple(f"frequency {one.circle.frequency}" for one in alone[:SHOWN]))
    fits = Panel(
        name="circles alone",
        title="what the logits of one circle are like",
        axes=(circle, Axis("form", tuple(FORMS), "form of the logits")),
        values=np.array([list(one.fits.values()) for one in alone[:SHOWN]]),
        unit="share of the logits' variance",
        zero="the form explains nothing",
        one="the form explains all",
        view="heatmap",
        scale="unit",
        words=np.array([[f"{value:.3f}" for value in one.fits.values()] for one in alone[:SHOWN]], dtype=object),
        hover=np.array([[FORMS[name] for name in one.fits] for one in alone[:SHOWN]], dtype=object),
    )
    points = Panel(
        name="circles",
        title="numbers on circles",
        axes=(
            circle,
            Axis("number", tuple(structure.first.tolist())),
            Axis("component", ("first component", "second component")),
        ),
        values=np.stack([one.circle.points for one in alone[:SHOWN]]),
        unit="embedding units",
        zero="the mean of the numbers",
        view="scatter",
    )
    return fits, gradients, right_logit, points


def for_report(subject: Subject, prompts: Prompts) -> dict[str, Any] | None:
    """What a report asks: modular addition."""
    return {} if has_pairs(subject) and is_addition(subject.task) else None
