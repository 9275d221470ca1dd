"""The studies: a recipe, one change at a time, and the prediction for each change.

A plan is a function that returns a `Study`, and one row in `verdicts/studies/table.py`. Its predictions are written
down before it is run, and are kept when they turn out false.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from algoscope.verdicts.studies.predictions import Accuracy, Alike, Arrives, AtWidth, Loss, Prediction, Worse, Wrong


@dataclass(frozen=True)
class Variant:
    """One change: the config fields that differ, and the predictions in comparison with the variant `against`."""

    name: str
    meaning: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    expected: tuple[Prediction[Any], ...] = ()
    against: str = "control"


@dataclass(frozen=True)
class Study:
    """A recipe, the changes common to all members, and the variants; the first is the control.

    `measures` is what the study measures: `steps` until the members generalise, their wrong `answers`, or the accuracy
    on `fresh` random sums at each of some `widths`.
    """

    name: str
    question: str
    recipe: str
    common: Mapping[str, Any]
    variants: tuple[Variant, ...]
    measures: Literal["steps", "answers", "widths"] = "steps"
    widths: tuple[int, ...] = ()
    fresh: int = 1_000


def low_rank() -> Study:
    """Which rank must the adder's matrices have? Muon has a third of its learning rate, as it moves all directions of a
    factor equally, and at most twice the steps.
    """
    return Study(
        name="low_rank",
        question="Which rank must the matrices of an adder have?",
        recipe="add3",
        measures="answers",
        common={"train.steps": 3_000, "optim.muon_lr": 0.005, "optim.decay_steps": 300},
        variants=(
            Variant("control", "full matrices"),
            *(Variant(f"rank-{r}", f"matrices of rank {r}", {"model.rank": r}) for r in (16, 12, 8, 6, 4, 3, 2, 1)),
        ),
    )


def grokking() -> Study:
    """What shortens or lengthens the delay between memorising and generalising?"""
    free = {"optim.weight_decay": 0.0}
    sooner = (Arrives("sooner"),)
    return Study(
        name="grokking",
        question="What shortens the delay between memorising and generalising?",
        recipe="grok59",
        common={"train.stop_at": 1.0},
        variants=(
            Variant("control", "weight decay 2, learning rate 0.002"),
            Variant("no-decay", "no weight decay", free, (Arrives("never"),)),
            Variant("grokfast-ema", "slow gradients amplified", {"optim.grokfast": "ema"}, sooner),
            Variant(
                "grokfast-ma",
                "the mean of 100 gradients added five times",
                {"optim.grokfast": "ma", "optim.grokfast_strength": 5.0},
                sooner,
            ),
            Variant("stablemax", "StableMax, no weight decay", free | {"train.loss": "stablemax"},
                    sooner, "no-decay"),
            Variant("perpendicular", "perpendicular gradient, no weight decay", free | {"optim.perpendicular": True},
                    sooner, "no-decay"),
            Variant("norm-clamp", "norm kept at its initial value, no weight decay", free | {"optim.norm_clamp": 1.0},
                    sooner, "no-decay"),
            Variant("small-norm", "norm kept at 0.7 of that, no weight decay", free | {"optim.norm_clamp": 0.7},
                    sooner),
            Variant("muon", "Muon on the matrices of the block", {"optim.name": "muon"}, sooner),
        ),
    )  # fmt: skip


def design() -> Study:
    """Which components does the 3-digit adder need, and which sums are wrong without them?

    Reasons for the predictions: without positions the operands are bags of digits. Without a mask the model copies the
    answer in training, and has none to copy when it decodes. One layer cannot compute a carry and then use it. With the
    units last, the first digit needs every carry. Rare classes need to be oversampled. More heads or width than the
    control's are not needed.
    """
    no_difference = (Alike(within=1e-4),)
    return Study(
        name="design",
        question="Which components does the adder need, and what fails without them?",
        recipe="add3",
        common={"train.steps": 1_500, "optim.decay_steps": 300},  # as `docs/studies.md` was measured
        measures="answers",
        variants=(
            Variant("control", "add3: 2 layers, 1 head, width 32"),
            Variant("no-positions", "no position embedding", {"model.positions": None},
                    (Accuracy(below=0.01), Wrong("class", ("S0",), least=0.5))),
            Variant("no-mask", "no causal mask", {"model.causal": False},
                    (Loss(below=0.01), Accuracy(below=0.01), Wrong("column", ("units",), least=0.5))),
            Variant("one-layer", "one layer", {"model.n_layers": 1},
                    (Accuracy(below=0.999), Worse("class", ("S2", "S3"), ("S0",)),
                     Worse("column", ("tens", "hundreds"), ("units",)))),
            Variant("unreversed", "sum written units last", {"task.reversed": False},
                    (Wrong("class", ("S0",), below=0.01), Worse("class", ("S1", "S2", "S3"), ("S0",)),
                     Worse("column", ("hundreds", "tens"), ("units",)))),
            Variant("no-hard", "uniform pairs, hard ones not oversampled", {"data.hard_share": 0.0},
                    (Accuracy(below=1.0), Worse("class", ("S3",), ("S0",)))),
            Variant("two-heads", "two heads of 16", {"model.n_heads": 2}, no_difference),
            Variant("four-heads", "four heads of 8", {"model.n_heads": 4}, no_difference),
            Variant("width-16", "width 16, 32 hidden units", _width(16), (Accuracy(below=0.999),)),
            Variant("width-24", "width 24, 48 hidden units", _width(24), (Accuracy(least=0.999),)),
            Variant("width-48", "width 48, 96 hidden units", _width(48), no_difference),
            Variant("width-64", "width 64, 128 hidden units", _width(64), no_difference),
        ),
    )  # fmt: skip


def _width(d_model: int) -> dict[str, Any]:
    return {"model.d_model": d_model, "model.d_mlp": 2 * d_model}


def training() -> Study:
    """What does training need: weight decay, learning rate, number of pairs?

    The control is a short reference recipe: 2,500 steps of 256, the learning rate at its peak for half of them, loss on
    the answer, different pairs for each seed. Reasons for the predictions: the run is too short for weight decay to
    matter. At a tenth of the learning rate the plateau outlasts the run. Small training sets are memorised; a few
    thousand pairs suffice to learn the rule (arXiv 2307.03381), but contain few long carry chains.
    """
    return Study(
        name="training",
        question="What does training need, and what fails without it?",
        recipe="add3_reference",
        common={
            "train.steps": 2500, "optim.hold": 0.5, "train.batch": 256, "train.log_every": 50, "train.eval_every": 250,
            "data.loss_on": "answer", "data.train_seed": None, "data.n_test": 2000,
        },
        measures="answers",
        variants=(
            Variant("control", "50,000 pairs, weight decay 0.1, learning rate 0.01"),
            Variant("no-decay", "no weight decay", {"optim.weight_decay": 0.0}, (Alike(within=1e-3),)),
            Variant("slow", "learning rate 0.001", {"optim.lr": 1e-3}, (Loss(least=1.0), Accuracy(below=0.01))),
            Variant("pairs-500", "500 pairs", {"data.n_train": 500}, (Loss(below=0.1), Accuracy(below=0.05))),
            Variant("pairs-1000", "1,000 pairs", {"data.n_train": 1000}, (Accuracy(below=0.5),)),
            Variant("pairs-2000", "2,000 pairs", {"data.n_train": 2000}, (Accuracy(below=0.99),)),
            Variant("pairs-5000", "5,000 pairs", {"data.n_train": 5000},
                    (Accuracy(least=0.9), Worse("class", ("S3",), ("S0",)))),
            Variant("pairs-10000", "10,000 pairs", {"data.n_train": 10_000}, (Alike(within=0.01),)),
        ),
    )  # fmt: skip


def length() -> Study:
    """With which position encoding does a model trained on sums of 1 to 20 digits add longer numbers?

    Predicted from the literature, with one layer or few: learned positions fail beyond the trained widths (Lee et al.,
    arXiv 2307.03381), digit position encodings extrapolate far (McLeish et al., 2405.17399; Cho et al., 2405.20671).
    Input injection and looped layers, with which McLeish et al. go furthest, are not tested.
    """
    fails = (AtWidth(30, below=0.05), AtWidth(60, below=0.01), AtWidth(100, below=0.01))
    carries = (AtWidth(30, above=0.99), AtWidth(60, above=0.95), AtWidth(100, above=0.9))
    return Study(
        name="length",
        question="Which position encodings extrapolate addition beyond the trained widths?",
        recipe="add20",
        common={"train.eval_every": 1_000},
        measures="widths",
        widths=(1, 5, 10, 15, 20, 25, 30, 40, 50, 60, 80, 100),
        variants=(
            Variant("learned", "a vector for each position", {
                "model.positions": "learned", "model.n_ids": None, "model.n_ctx": 304}, fails, "learned"),
            Variant("coupled", "a vector for each significance, shared by operands and sum", {}, carries, "learned"),
            Variant("abacus", "a vector for each index of a digit in its number", {"model.positions": "abacus"},
                    carries, "learned"),
        ),
    )  # fmt: skip
