"""The inputs that a verdict covers: all, or a sample with its 95 % interval."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import torch

from algoscope.core.errors import ConfigError
from algoscope.core.intervals import (
    clopper_pearson,
    stratified_accuracy,
    stratified_bounds,
    stratified_interval,
    stratified_wrong,
)
from algoscope.data import seeded
from algoscope.tasks.base import Task, Tokens
from algoscope.tasks.capabilities import Stratified, uniform_below

EXHAUSTIVE_UP_TO = 10**8
SAMPLE_OF_LARGE = 100_000
DRAWS_OF_LARGE = 120_000  # default total over all classes, with these bounds for each class
FEWEST, MOST = 2, 10_000
SAMPLE_SEED = 2025


@dataclass(frozen=True)
class Domain:
    """The inputs to be checked, `checked` of `size` (None: not known): all, uniform draws, or draws within the classes
    of a scheme. Of a task that draws its inputs and does not list them, the draws are its own.
    """

    task: Task
    size: int | None
    checked: int
    method: Literal["exhaustive", "sampled", "stratified"]

    def chunks(self, rows: int, device: torch.device) -> Iterator[Tokens]:
        """The inputs in batches of `rows`; exhaustive ones in lexicographic order, so that neighbours share
        prefixes."""
        for number, start in enumerate(range(0, self.checked, rows)):
            n = min(rows, self.checked - start)
            if self.method == "exhaustive":
                yield self.task.at(torch.arange(start, start + n, device=device))
            else:
                tokens = self.draw(start, n, seeded(device, SAMPLE_SEED, number))
                yield tokens[self.task.keys(tokens).sort().indices]

    def draw(self, start: int, n: int, generator: torch.Generator) -> Tokens:
        """The inputs of a sample from number `start` on: uniform, also where the task itself draws otherwise."""
        if self.task.uniform or self.size is None:
            return self.task.sample(n, generator)
        index = uniform_below(np.full(n, self.size, dtype=object), generator)
        return self.task.at(torch.from_numpy(index.astype(np.int64)).to(generator.device))

    def edge_cases(self, device: torch.device) -> Tokens:
        """The task's edge cases, where they are checked as well."""
        return self.task.edge_inputs()[:0].to(device)

    def accuracy(self, wrong_of: Sequence[int]) -> float:
        """The accuracy, exact or estimated from the wrong counts of the classes."""
        return 1 - sum(wrong_of) / self.checked

    def interval(self, wrong_of: Sequence[int]) -> list[float] | None:
        """95 % Clopper-Pearson bounds on the accuracy; None when every input was counted."""
        if self.method == "exhaustive":
            return None
        return _accuracies([sum(wrong_of)], [self.checked])[0]

    def wrong_share(self, wrong_of: Sequence[int]) -> float:
        """The share of the domain that is wrong, exact or estimated. Unlike 1 - accuracy it keeps tiny shares."""
        return sum(wrong_of) / self.checked

    def wrong_interval(self, wrong_of: Sequence[int]) -> list[float] | None:
        """95 % bounds on that share; None when every input was counted."""
        if self.method == "exhaustive":
            return None
        return [float(end[0]) for end in clopper_pearson(np.array([sum(wrong_of)]), np.array([self.checked]))]

    def class_intervals(self, checked_of: Sequence[int], wrong_of: Sequence[int]) -> list[list[float] | None]:
        """The same for each class; None for a class that was checked completely, or not at all."""
        if self.method == "exhaustive":
            return [None] * len(checked_of)
        bounds = _accuracies(wrong_of, checked_of)
        return [bound if n else None for bound, n in zip(bounds, checked_of, strict=True)]

    def sizes(self, checked_of: Sequence[int]) -> list[int | None]:
        """How many inputs each class has; None where only a sample is known."""
        return [None] * len(checked_of) if self.method == "sampled" else list(checked_of)


@dataclass(frozen=True)
class Strata(Domain):
    """Independent uniform draws within every class of a scheme: `per_class`, or all of a class that has no more.

    The task's edge cases are checked as well: wrong ones are counted, but they are not part of the estimate.
    """

    by: str
    per_class: int

    @property
    def stratified(self) -> Stratified:
        assert isinstance(self.task, Stratified)
        return self.task

    @cached_property
    def class_sizes(self) -> tuple[int, ...]:
        return self.stratified.class_sizes(self.by)

    @cached_property
    def draws(self) -> tuple[int, ...]:
        """How many inputs of each class are checked."""
        return tuple(min(size, self.per_class) for size in self.class_sizes)

    def draw(self, start: int, n: int, generator: torch.Generator) -> Tokens:
        ends = np.cumsum(self.draws)
        number = np.arange(start, start + n)
        kinds = np.searchsorted(ends, number, side="right")
        sizes = np.array(self.class_sizes, dtype=object)[kinds]
        place = (number - (ends - np.array(self.draws))[kinds]).astype(object)
        rank = np.where(sizes <= self.per_class, place, uniform_below(sizes, generator))
        return self.stratified.class_members(self.by, torch.from_numpy(kinds).to(generator.device), rank)

    def edge_cases(self, device: torch.device) -> Tokens:
        return self.task.edge_inputs().to(device)

    def accuracy(self, wrong_of: Sequence[int]) -> float:
        return stratified_accuracy(self.class_sizes, self.draws, wrong_of)

    def interval(self, wrong_of: Sequence[int]) -> list[float] | None:
        return stratified_interval(self.class_sizes, self.draws, wrong_of)

    def wrong_share(self, wrong_of: Sequence[int]) -> float:
        return float(stratified_wrong(self.class_sizes, self.draws, wrong_of))

    def wrong_interval(self, wrong_of: Sequence[int]) -> list[float] | None:
        return list(stratified_bounds(self.class_sizes, self.draws, wrong_of))

    def class_intervals(self, checked_of: Sequence[int], wrong_of: Sequence[int]) -> list[list[float] | None]:
        bounds = super().class_intervals(checked_of, wrong_of)
        whole = [size <= self.per_class for size in self.class_sizes]
        return [None if done else bound for bound, done in zip(bounds, whole, strict=True)]

    def sizes(self, checked_of: Sequence[int]) -> list[int | None]:
        return list(self.class_sizes)


def domain_of(task: Task, sample: int | None = None, *, by: str | None = None, per_class: int | None = None) -> Domain:
    """Choose the inputs of a task to check.

    By default: every input if there are at most 10^8; else draws within every class of the scheme `by` (or the task's
    first), if the task supports that: 120,000 in total, but 2 to 10,000 of each class; else 100,000 uniform draws.
    `per_class` sets the number of draws of every class, `sample` that of uniform draws.

    Raises ConfigError for a sample or a number of draws below 1, for both at once, and for draws within classes of a
    task that cannot make them; UnknownNameError for a scheme that the task does not have.
    """
    by = task.class_schemes[0] if by is None else by
    if sample is not None and per_class is not None:
        raise ConfigError(f"a sample of {sample} and {per_class} draws a class exclude each other: give one")
    if sample is not None and sample < 1:
        raise ConfigError(f"a sample of {sample} inputs is empty: give 1 or more")
    if per_class is not None and per_class < 1:
        raise ConfigError(f"{per_class} draws a class are too few: give 1 or more")
    can = isinstance(task, Stratified)
    if per_class is not None and not can:
        raise ConfigError(f"{task.kind} cannot be sampled class by class: use a uniform sample (--sample)")
    size = task.domain_size
    if sample is None and per_class is None and size is not None and size <= EXHAUSTIVE_UP_TO:
        return Domain(task, size, size, "exhaustive")
    if sample is None and isinstance(task, Stratified):
        sizes = task.class_sizes(by)
        draws = per_class or min(max(DRAWS_OF_LARGE // len(sizes), FEWEST), MOST)
        checked = sum(min(size, draws) for size in sizes)
        return Strata(task, size, checked, "stratified", by, draws)
    return Domain(task, size, sample or SAMPLE_OF_LARGE, "sampled")


def _accuracies(wrong_of: Sequence[int], checked_of: Sequence[int]) -> list[list[float] | None]:
    low, high = clopper_pearson(np.array(wrong_of), np.array(checked_of))
    return [[float(1 - above), float(1 - below)] for below, above in zip(low, high, strict=True)]
