"""Predictions about a change, as statements decided by measured numbers. Each class states its rule.

A prediction is judged on the members of a variant and those of the variant it is compared with: by the medians over
several members, or by the numbers of one. It is false without members.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar

import numpy as np

Outcome = Literal["sooner", "later", "never", "no clear difference"]
By = Literal["class", "column"]
Member = TypeVar("Member")


@dataclass(frozen=True)
class Measured:
    """The results of one member: steps until 99 % of the training and of the test inputs were right (None: never), the
    loss of its last training step in nats a position, and what certification counted: inputs checked, those
    wrong, the share right, by class of input and by column of the answer the share wrong (0 = none, 1 = all), and the
    share of the domain that is wrong where only draws were checked (None: all were).
    """

    memorised: int | None
    generalised: int | None
    loss: float
    checked: int
    wrong: int
    accuracy: float
    by_class: Mapping[str, float]
    by_column: Mapping[str, float]
    drawn_share: float | None = None

    def share(self, by: By, name: str) -> float:
        """The share wrong in a class or a column; NaN where no input is of that class."""
        return (self.by_class if by == "class" else self.by_column).get(name, float("nan"))


@dataclass(frozen=True)
class WidthShares:
    """Shares of one member's sums by width: `whole`, answered right; `digits`, all digits right, with or without a
    right end; `rest`, right after the first digit, given that digit.
    """

    whole: Mapping[int, float]
    digits: Mapping[int, float]
    rest: Mapping[int, float]


def median(members: Sequence[Member], number: Callable[[Member], float]) -> float:
    return float(np.median([number(member) for member in members]))


class Prediction(ABC, Generic[Member]):
    """One statement about a change, decided by the members' measurements."""

    @property
    @abstractmethod
    def says(self) -> str:
        """The statement in words."""

    @abstractmethod
    def holds(self, members: Sequence[Member], control: Sequence[Member]) -> bool:
        """Whether it holds; false without members."""

    def numbers(self, members: Sequence[Member]) -> dict[str, Any]:
        """Further facts of the statement: its subject and the measured value."""
        return {}


@dataclass(frozen=True)
class Arrives(Prediction[Measured]):
    """When it generalises, compared with the control by the rule of `compare`."""

    outcome: Outcome

    @property
    def says(self) -> str:
        return self.outcome

    def holds(self, members: Sequence[Measured], control: Sequence[Measured]) -> bool:
        steps = [member.generalised for member in members]
        return bool(members) and compare(steps, [member.generalised for member in control]) == self.outcome


def compare(arrived: Sequence[int | None], control: Sequence[int | None]) -> Outcome:
    """`never`: no member generalised; `sooner`: their median (never counts as later than all) is before every seed of
    the control; `later`: after every one; else no clear difference.
    """
    if all(step is None for step in arrived):
        return "never"
    middle, others = float(np.median([late(step) for step in arrived])), [late(step) for step in control]
    if not others:
        return "no clear difference"
    if middle < min(others):
        return "sooner"
    return "later" if middle > max(others) else "no clear difference"


def late(step: int | None) -> float:
    return float("inf") if step is None else float(step)


@dataclass(frozen=True)
class Accuracy(Prediction[Measured]):
    """The share of all inputs right is below `below`, or at least `least`."""

    below: float | None = None
    least: float | None = None

    @property
    def says(self) -> str:
        return f"accuracy {_bound(self.below, self.least)}"

    def holds(self, members: Sequence[Measured], control: Sequence[Measured]) -> bool:
        return bool(members) and _within(median(members, lambda m: m.accuracy), self.below, self.least)


@dataclass(frozen=True)
class Wrong(Prediction[Measured]):
    """In each of these classes or columns, the share wrong is below `below`, or at least `least`."""

    by: By
    of: tuple[str, ...]
    below: float | None = None
    least: float | None = None

    @property
    def says(self) -> str:
        return f"{', '.join(self.of)}: {_bound(self.below, self.least)} wrong"

    def holds(self, members: Sequence[Measured], control: Sequence[Measured]) -> bool:
        return bool(members) and all(
            _within(share, self.below, self.least) for share in _shares(members, self.by, self.of)
        )


@dataclass(frozen=True)
class Worse(Prediction[Measured]):
    """Each of the classes or columns `of` has a larger share wrong than each of `than`."""

    by: By
    of: tuple[str, ...]
    than: tuple[str, ...]

    @property
    def says(self) -> str:
        return f"{', '.join(self.of)} worse than {', '.join(self.than)}"

    def holds(self, members: Sequence[Measured], control: Sequence[Measured]) -> bool:
        if not members:
            return False
        others = _shares(members, self.by, self.than)
        return all(share > other for share in _shares(members, self.by, self.of) for other in others)


@dataclass(frozen=True)
class Alike(Prediction[Measured]):
    """No difference: the accuracy is at most as far from the control's median as the control's farthest seed, or at
    most `within`, if that is more.
    """

    within: float = 0.0

    @property
    def says(self) -> str:
        return "no difference" + (f" above {100 * self.within:g} % of the inputs" if self.within else "")

    def holds(self, members: Sequence[Measured], control: Sequence[Measured]) -> bool:
        if not members or not control:
            return False
        middle = median(control, lambda m: m.accuracy)
        spread = max(abs(member.accuracy - middle) for member in control)
        return abs(median(members, lambda m: m.accuracy) - middle) <= max(spread, self.within)


@dataclass(frozen=True)
class Loss(Prediction[Measured]):
    """The loss of the last training step, in nats a position, is below `below`, or at least `least`."""

    below: float | None = None
    least: float | None = None

    @property
    def says(self) -> str:
        return "training loss " + (f"below {self.below:g}" if self.below is not None else f"at least {self.least:g}")

    def holds(self, members: Sequence[Measured], control: Sequence[Measured]) -> bool:
        return bool(members) and _within(median(members, lambda m: m.loss), self.below, self.least)


@dataclass(frozen=True)
class AtWidth(Prediction[WidthShares]):
    """The median share of sums of a width that is answered right is above `above`, or below `below`."""

    width: int
    above: float | None = None
    below: float | None = None

    @property
    def says(self) -> str:
        return f"> {self.above}" if self.above is not None else f"< {self.below}"

    def holds(self, members: Sequence[WidthShares], control: Sequence[WidthShares]) -> bool:
        if not members:
            return False
        share = median(members, lambda m: m.whole[self.width])
        return (self.above is None or share > self.above) and (self.below is None or share < self.below)

    def numbers(self, members: Sequence[WidthShares]) -> dict[str, Any]:
        return {
            "width": self.width,
            "median": median(members, lambda m: m.whole[self.width]) if members else None,
        }


def _shares(members: Sequence[Measured], by: By, names: Sequence[str]) -> list[float]:
    return [float(np.median([member.share(by, name) for member in members])) for name in names]


def _within(value: float, below: float | None, least: float | None) -> bool:
    return (below is None or value < below) and (least is None or value >= least)


def _bound(below: float | None, least: float | None) -> str:
    bounds = [f"below {100 * below:g} %" if below is not None else "", f"at least {100 * least:g} %" if least else ""]
    return " and ".join(filter(None, bounds))
