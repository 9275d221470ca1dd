"""The embedding lens: the shape of the token and position embeddings, before and after training."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from torch import Tensor

from algoscope.core.arguments import Folder, checked_arguments
from algoscope.core.errors import ConfigError, VocabularyError
from algoscope.core.finding import Finding, ResultTable
from algoscope.core.panel import Axis, Label, Panel
from algoscope.lenses.inputs.prompts import Prompts
from algoscope.lenses.measures import Measure
from algoscope.lenses.modular_arithmetic.circles import circle_panel, circles_of, circularity
from algoscope.lenses.modular_arithmetic.operand_pairs import cyclic_sum
from algoscope.subjects.opening import AnyModel, measurement, open_subject
from algoscope.subjects.subject import Subject
from algoscope.subjects.text import Texts, texts_of

Vectors = Float[np.ndarray, "point d_model"]
Sets = Mapping[str, Mapping[str, Vectors]]
"""The vectors of tokens and of positions, before and after training."""

MOST_TOKENS, MOST_POSITIONS = 200, 128
ABOUT = (
    "Every token, and where positions are learned every position, is a vector in the residual stream; training "
    "arranges these vectors. The effective dimension (participation ratio of the variances) is the number of "
    "directions in which they spread: 1 = along a line, n = n directions equally. Points on a circle or a line mean "
    "that the order of the labels is represented; principal components mix circles of equal size, so the circles of "
    "numbers modulo n are looked for in the planes of their frequencies. The angle between two vectors says how "
    "similarly a linear readout must treat them."
)
COORDINATE = Measure("embedding units", "the mean of the points")
VARIANCE = Measure("share of the variance", "none of the variance", "all of the variance", "unit")
COSINE = Measure("cosine", "orthogonal", "same direction", "signed")


@checked_arguments
@measurement
def embeddings(subject: AnyModel, inputs: Texts = None, *, runs_dir: Folder = None) -> Finding:
    """PCA, cosine similarity and effective dimension of the embeddings, compared with step 0 if it is available.

    Tokens are those that occur in the task's sequences (similarity: those of numbers); for a model of free text, those
    of the inputs, or all of a small vocabulary. Positions of free text: the first 128.

    Args:
        subject: a model, by name or opened.
        inputs: texts whose tokens are compared, one or several, for a model of free text; by default the whole
            vocabulary, where it has at most 200 tokens.
        runs_dir: where run folders are looked for; by default the usual place.

    Returns:
        A finding with three panels each for `token` and `position`, with a leading axis `when` (before, after): `...
        PCA` [when point component], coordinates on the first two principal components of the centred vectors; `...
        explained variance` [when component], the share of the variance on each component, summing to 1; `...
        similarity` [when point other], the cosine of the angle at the origin, 0 = orthogonal, 1 = same direction. Fact
        `effective_dimension`: the participation ratio (sum of variances)^2 / sum of squared variances: 1 = all on a
        line, n = n directions equally. For
        addition modulo n (and operations that are one in another order) a panel `token circles` [circle number
        direction] and a fact `circularity`, the share of the variance of the number embeddings that circles explain in
        the planes of single frequencies: 1 = all of it, 0 = no frequency stands out.

    Raises:
        ConfigError: for a model of free text with more than 200 tokens and no inputs.

    Example:
        >>> import algoscope as ag
        >>> round(ag.lenses.embeddings("planted:carry-adder")["effective_dimension"]["position"]["after"])
        11
    """
    subject = open_subject(subject, runs_dir=runs_dir)
    before = subject.before_training()
    models = {"before": before, "after": subject} if before is not None else {"after": subject}
    rows, compared_tokens = _tokens(subject, texts_of(inputs))
    labels = tuple(subject.text.token(row) for row in rows)
    sets: dict[str, tuple[tuple[Label, ...], list[int], dict[str, Vectors]]] = {
        "token": (
            labels,
            compared_tokens,
            {when: _array(model.token_embedding())[rows] for when, model in models.items()},
        )
    }
    positions = {when: model.position_embedding() for when, model in models.items()}
    if positions["after"] is not None:
        # the last position of a task is only predicted
        used = subject.task.n_ctx - 1 if subject.has_task else min(subject.cfg.n_ctx, MOST_POSITIONS)
        vectors = {when: _array(w_pos)[:used] for when, w_pos in positions.items() if w_pos is not None}
        sets["position"] = (tuple(range(used)), list(range(used)), vectors)
    dimension = {
        what: {when: effective_dimension(vectors) for when, vectors in by_when.items()}
        for what, (*_, by_when) in sets.items()
    }
    dimensions = "; ".join(
        f"{what} embeddings: " + ", ".join(f"{value:.1f} {when}" for when, value in by_when.items())
        for what, by_when in dimension.items()
    )
    cyclic = cyclic_sum(subject.task) if subject.has_task else None
    circles = {} if cyclic is None else {
        when: circles_of(_array(model.token_embedding())[cyclic.first]) for when, model in models.items()
    }  # fmt: skip
    circularities = {when: circularity(on_circles) for when, on_circles in circles.items()} or None
    claim = f"effective dimension of the {dimensions} training"
    if circularities:
        claim += f"; circles explain {circularities['after']:.0%} of the variance of the number embeddings"
    panels = [panel for what, parts in sets.items() for panel in _panels(what, *parts)]
    if cyclic is not None and circles["after"]:
        panels.append(circle_panel("token circles", cyclic.first.tolist(), circles["after"]))
    return subject.finding(
        "embeddings",
        claim,
        {"effective_dimension": dimension, "circularity": circularities},
        panels,
        about=ABOUT,
        tables=[_table({what: by_when for what, (*_, by_when) in sets.items()})],
    )


def _tokens(subject: Subject, inputs: Sequence[str]) -> tuple[list[int], list[int]]:
    """The tokens to show, and which of them to compare by cosine similarity."""
    if subject.has_task:
        task = subject.task
        used = task.used_tokens
        return [task.vocabulary.index(token) for token in used], [used.index(token) for token in task.ordinals]
    n = subject.cfg.d_vocab
    if not inputs and n > MOST_TOKENS:
        raise ConfigError(f"{subject.name} has {n:,} tokens, too many to draw: choose some with --input TEXT")
    rows = sorted({number for text in inputs for number in subject.text.encode(text)}) if inputs else list(range(n))
    if not rows:
        raise VocabularyError(f"there are no tokens in {', '.join(map(repr, inputs))}: give a text that has some")
    return rows, list(range(len(rows)))


def principal_components(
    vectors: Vectors,
) -> tuple[Float[np.ndarray, "point component"], Float[np.ndarray, "component"]]:
    """Coordinates of the centred vectors on their principal components, and each component's share of the variance.

    There are two components at least; those of vectors that are all alike, such as of a single one, are zero.
    """
    centred = vectors - vectors.mean(axis=0)
    u, s, _ = np.linalg.svd(centred, full_matrices=False)
    lacking = (0, max(2 - len(s), 0))
    variance = np.pad(s**2, lacking)
    return np.pad(u * s, ((0, 0), lacking)), variance / (variance.sum() or 1)


def effective_dimension(vectors: Vectors) -> float:
    """Participation ratio of the variances: 0 = one point, 1 = all points on a line, n = n directions equally."""
    squares = float((principal_components(vectors)[1] ** 2).sum())
    return 1 / squares if squares else 0.0


def cosine_similarity(vectors: Vectors) -> Float[np.ndarray, "point other"]:
    """Cosine of the angle at the origin between every two vectors; NaN where one is zero and has no direction."""
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit = np.divide(vectors, length, out=np.full_like(vectors, np.nan), where=length > 0)
    return unit @ unit.T


def _array(tensor: Tensor) -> Vectors:
    return tensor.double().cpu().numpy()


def _table(sets: Sets) -> ResultTable:
    rows = []
    for what, by_when in sets.items():
        for when, vectors in by_when.items():
            shares = principal_components(vectors)[1]
            first_two = float(shares[:2].sum())
            rows.append(
                (what, f"{when} training", len(vectors), effective_dimension(vectors), float(shares[0]), first_two)
            )
    return ResultTable(
        title="Effective dimension of the embeddings",
        columns=("embedding", "when", "vectors", "effective dimension", "variance on PC1", "on PC1 and PC2"),
        rows=tuple(rows),
        caption="Participation ratio of the variances of the centred vectors (1 = along a line), and the shares of the "
        "variance on the first principal component and on the first two.",
    )


def _panels(what: str, labels: tuple[Label, ...], compared: list[int], by_when: dict[str, Vectors]) -> list[Panel]:
    when = Axis("when", tuple(f"{name} training" for name in by_when))
    analysed = [principal_components(vectors) for vectors in by_when.values()]
    shares = np.stack([share for _, share in analysed])
    components = tuple(f"PC{i + 1}" for i in range(shares.shape[1]))
    names = tuple(labels[i] for i in compared)
    return [
        COORDINATE.panel(
            f"{what} PCA",
            [when, Axis(what, labels), Axis("component", components[:2])],
            np.stack([coordinates[:, :2] for coordinates, _ in analysed]),
            caption=f"The {what} embeddings on their first two principal components, the directions in which they "
            "differ most. Colour is the order of the labels.",
            view="scatter",
        ),
        VARIANCE.panel(
            f"{what} explained variance",
            [when, Axis("component", components, "principal component")],
            shares,
            caption=f"Share of the variance of the {what} embeddings on each principal component. The PCA map shows "
            f"only the first two bars.",
            view="bars",
        ),
        COSINE.panel(
            f"{what} similarity",
            [when, Axis(what, names), Axis(f"other {what}", names)],
            np.stack([cosine_similarity(vectors[compared]) for vectors in by_when.values()]),
            caption=f"Cosine of the angle between every two {what} embeddings: 1 (blue) = same direction, 0 (white) = "
            "orthogonal, -1 (orange) = opposite. A blue band along the diagonal: neighbours have similar embeddings.",
        ),
    ]


def for_report(subject: Subject, prompts: Prompts) -> dict[str, Any] | None:
    """The options of a report: all tokens of a task, or those of the prompts in free text."""
    return {} if subject.has_task else {"inputs": prompts.compared}
