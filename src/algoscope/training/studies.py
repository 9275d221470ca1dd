"""The studies: a recipe, one change at a time, and what is expected of each change."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Outcome = Literal["sooner", "later", "never", "no clear difference"]


@dataclass(frozen=True)
class Variant:
    """One change: the fields of the config that differ, and what is expected of it beside the variant `against`."""

    name: str
    meaning: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    expected: Outcome | None = None
    against: str = "control"


@dataclass(frozen=True)
class Study:
    """A recipe, what every member of the study changes in it, and the variants; the first is the control."""

    name: str
    question: str
    recipe: str
    common: Mapping[str, Any]
    variants: tuple[Variant, ...]


def grokking() -> Study:
    """What makes the wait between memorising and generalising shorter or longer?"""
    free = {"optim.weight_decay": 0.0}
    return Study(
        name="grokking",
        question="What shortens the wait between memorising and generalising?",
        recipe="grok59",
        common={"train.stop_at": 1.0},
        variants=(
            Variant("control", "weight decay 2, learning rate 0.002"),
            Variant("no-decay", "no weight decay", free, "never"),
            Variant("grokfast-ema", "slow gradients amplified", {"optim.grokfast": "ema"}, "sooner"),
            Variant(
                "grokfast-ma",
                "the mean of 100 gradients added five times",
                {"optim.grokfast": "ma", "optim.grokfast_strength": 5.0},
                "sooner",
            ),
            Variant("stablemax", "StableMax, no weight decay", free | {"train.loss": "stablemax"},
                    "sooner", "no-decay"),
            Variant("perpendicular", "perpendicular gradient, no weight decay", free | {"optim.perpendicular": True},
                    "sooner", "no-decay"),
            Variant("norm-clamp", "weights kept at their first norm, no weight decay", free | {"optim.norm_clamp": 1.0},
                    "sooner", "no-decay"),
            Variant("small-norm", "weights kept at 0.7 of it, no weight decay", free | {"optim.norm_clamp": 0.7},
                    "sooner"),
            Variant("muon", "Muon on the matrices of the block", {"optim.name": "muon"}, "sooner"),
        ),
    )  # fmt: skip


def length() -> Study:
    """Which positions let a model that learned sums of 1 to 20 digits add longer numbers?"""
    return Study(
        name="length",
        question="Which positions carry addition beyond the widths that were trained?",
        recipe="add20",
        common={"train.eval_every": 1_000},
        variants=(
            Variant("learned", "a vector for each position", {
                "model.positions": "learned", "model.n_ids": None, "model.n_ctx": 304}, None, "learned"),
            Variant("coupled", "a vector for each significance, shared by operands and sum", {}, None, "learned"),
            Variant("abacus", "a vector for each place in a number", {"model.positions": "abacus"}, None, "learned"),
        ),
    )  # fmt: skip
