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


def low_rank() -> Study:
    """With how few directions a matrix can the adder still be right? A third of the learning rate of Muon, which moves
    every direction of a factor alike, and at most twice the steps.
    """
    return Study(
        name="low_rank",
        question="How few directions a matrix does an adder need?",
        recipe="add3",
        common={"train.steps": 3_000, "optim.muon_lr": 0.005},
        variants=(
            Variant("control", "whole matrices"),
            *(Variant(f"rank-{r}", f"matrices of rank {r}", {"model.rank": r}) for r in (16, 12, 8, 6, 4, 3, 2, 1)),
        ),
    )


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
