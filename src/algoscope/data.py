"""Layer 1, the data: every batch is a pure function of (seed, step), made on the device, without held-out inputs.

So no state of the data is saved for a resume: step 700 of seed 3 is always the same batch.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from algoscope.config import DataConfig
from algoscope.core.errors import ConfigError
from algoscope.tasks.base import Task, Tokens
from algoscope.tasks.capabilities import Repeating, Staged

ENUMERABLE = 2**24  # in domains up to this size draws are distinct: a random permutation
HELD_OUT_SHARE = 5  # one input in this many is held out of a small domain
PATIENCE = 100  # rounds of draws without one that is not held out
TRIED = 1_000  # least number of draws that show how often the held-out inputs are drawn
STEPS_A_DRAW = 32  # fresh batches are drawn for this many steps at once
BESIDE = 1  # marks the random stream of draws other than the examples


def seeded(device: torch.device, *numbers: int) -> torch.Generator:
    """A random generator from a tuple of numbers: equal tuples give equal streams, others independent ones."""
    seed = int(np.random.SeedSequence((len(numbers), *numbers)).generate_state(1)[0])
    return torch.Generator(device).manual_seed(seed)


def all_or_sample(task: Task, at_most: int, generator: torch.Generator) -> Tokens:
    """Every input of the task where there are at most `at_most`, else a random sample; on the generator's device."""
    return task.every(generator.device) if task.has_at_most(at_most) else task.sample(at_most, generator)


def held_out(task: Task, data: DataConfig, seed: int, device: torch.device) -> Tokens:
    """The test inputs: `data.n_test` distinct uniform draws, at most a fifth of the domain unless the data fit a fixed
    set. `seed` is the run's.
    """
    size, generator = task.domain_size, seeded(device, seed if data.test_seed is None else data.test_seed)
    if size is None:
        return _rarely_drawn(task, data.n_test, generator)
    if size < 2:
        raise ConfigError(f"the task {task.kind} has one input: none is left to train on when it is held out")
    fits = data.source == "fixed" and data.n_train + data.n_test <= size
    n = data.n_test if fits else min(data.n_test, max(size // HELD_OUT_SHARE, 1))
    return _distinct(task, n, generator)


def _rarely_drawn(task: Task, n: int, generator: torch.Generator) -> Tokens:
    """Up to `n` distinct draws of a task that does not list its inputs: at most a fifth of draws is among them."""
    tokens, others = task.sample(n, generator), task.sample(max(n, TRIED), generator)
    keys = task.keys(tokens)
    distinct, first = np.unique(keys.cpu().numpy(), return_index=True)
    tokens, keys = tokens[torch.from_numpy(np.sort(first)).to(tokens.device)], torch.from_numpy(distinct)
    while float(_among(task.keys(others).cpu(), keys).float().mean()) > 1 / HELD_OUT_SHARE:
        tokens = tokens[: len(tokens) // 2]
        if not len(tokens):
            raise ConfigError(f"the task {task.kind} draws few different inputs: let prompts() list them")
        keys = task.keys(tokens).cpu().sort().values
    return tokens


class Batches(ABC):
    """Training data, step by step."""

    task: Task
    seed: int
    device: torch.device

    @abstractmethod
    def batch(self, step: int) -> Tokens:
        """The examples of a step."""

    def task_at(self, step: int) -> Task:
        """The task at the width of a step's examples."""
        return self.task

    def chance(self, step: int) -> torch.Generator:
        """The random generator of a step for draws other than its examples."""
        return seeded(self.device, self.seed, step, BESIDE)

    @abstractmethod
    def examples_before(self, step: int) -> int:
        """The number of examples in all steps before this one."""


def batches(task: Task, data: DataConfig, batch: int, seed: int, test: Tokens) -> Batches:
    """The training batches of a run. Raises ConfigError where fixed set and test set exceed the domain."""
    seed = seed if data.train_seed is None else data.train_seed
    if data.shortest is not None:
        return WidthBatches(task, data, batch, seed, test)
    if data.source == "fresh":
        return FreshBatches(task, data, batch, seed, test)
    room = None if task.domain_size is None else task.domain_size - len(test)
    if room is not None and data.n_train > room:
        raise ConfigError(f"data.n_train {data.n_train} exceeds the {room} inputs of the task that are not held out")
    return FixedBatches(task, data, batch, seed, test)


class FreshBatches(Batches):
    """New draws every step."""

    def __init__(self, task: Task, data: DataConfig, batch: int, seed: int, test: Tokens) -> None:
        self.task, self.data, self.size, self.seed, self.device = task, data, batch, seed, test.device
        self.test_keys = task.keys(test).sort().values
        self._drawn: tuple[int, Tokens] | None = None

    def batch(self, step: int) -> Tokens:
        draw, index = divmod(step, STEPS_A_DRAW)
        if self._drawn is None or self._drawn[0] != draw:
            self._drawn = (draw, self._draw(draw))
        return self._drawn[1][index * self.size : (index + 1) * self.size]

    def examples_before(self, step: int) -> int:
        return step * self.size

    def _draw(self, draw: int) -> Tokens:
        generator = seeded(self.device, self.seed, draw)
        first = draw * STEPS_A_DRAW
        if first < self.data.curriculum:
            steps = range(first, first + STEPS_A_DRAW)
            return torch.cat([self._some(self.size, generator, self._stage(step)) for step in steps])
        return self._some(STEPS_A_DRAW * self.size, generator)

    def _stage(self, step: int) -> int | None:
        """The curriculum stage of a step, which grows linearly; None after the curriculum."""
        if step >= self.data.curriculum or not isinstance(self.task, Staged):
            return None
        return 1 + step * self.task.n_stages // self.data.curriculum

    def _some(self, n: int, generator: torch.Generator, stage: int | None = None) -> Tokens:
        """`n` draws; with a `stage`, each at a uniformly random stage up to it."""

        def draw(n: int) -> Tokens:
            tokens = self.task.sample(n, generator, self.data.hard_share)
            if self.data.repeat_share and isinstance(self.task, Repeating):
                chosen = torch.rand(len(tokens), 1, generator=generator, device=self.device) < self.data.repeat_share
                tokens = torch.where(chosen, self.task.repeated(tokens, generator), tokens)
            if stage is not None and isinstance(self.task, Staged):
                stages = torch.randint(1, stage + 1, (len(tokens),), generator=generator, device=self.device)
                tokens = self.task.at_stage(tokens, stages)
            return tokens

        return _drawn(self.task, n, draw, self.test_keys)


class WidthBatches(Batches):
    """New draws every step, all of one width, uniform from `data.shortest` to the task's width.

    Held-out inputs have the task's width, so only batches of that width are checked against them.
    """

    def __init__(self, task: Task, data: DataConfig, batch: int, seed: int, test: Tokens) -> None:
        assert data.shortest is not None
        assert task.width is not None
        self.task, self.size, self.seed, self.device = task, batch, seed, test.device
        self.hard_share = data.hard_share
        self.widths = [task.of_width(width) for width in range(data.shortest, task.width + 1)]
        self.test_keys = task.keys(test).sort().values

    def batch(self, step: int) -> Tokens:
        task, generator = self._drawn(step)
        apart_from = self.test_keys if task == self.task else self.test_keys[:0]
        return _drawn(task, self.size, lambda n: task.sample(n, generator, self.hard_share), apart_from)

    def task_at(self, step: int) -> Task:
        return self._drawn(step)[0]

    def examples_before(self, step: int) -> int:
        return step * self.size

    def _drawn(self, step: int) -> tuple[Task, torch.Generator]:
        """The task at the width of a step, and the generator of its examples."""
        generator = seeded(self.device, self.seed, step)
        index = torch.randint(len(self.widths), (), generator=generator, device=self.device)
        return self.widths[int(index)], generator


class FixedBatches(Batches):
    """Epochs over a fixed set, each in a new order; the last batch of an epoch may be smaller.

    The inputs are distinct; for a task with non-uniform draws the set is a sample, with duplicates.
    """

    def __init__(self, task: Task, data: DataConfig, batch: int, seed: int, test: Tokens) -> None:
        self.task, self.seed, self.size, self.device = task, seed, batch, test.device
        generator, test_keys = seeded(test.device, seed), task.keys(test).sort().values
        if task.uniform:
            self.train = _distinct(task, data.n_train, generator, test_keys)
        else:
            self.train = _drawn(task, data.n_train, lambda n: task.sample(n, generator), test_keys)
        self.per_epoch = -(-len(self.train) // batch)
        self._order: tuple[int, Int[Tensor, "train"]] | None = None

    def batch(self, step: int) -> Tokens:
        epoch, index = divmod(step, self.per_epoch)
        if self._order is None or self._order[0] != epoch:
            generator = seeded(self.device, self.seed, epoch)
            self._order = (epoch, torch.randperm(len(self.train), generator=generator, device=self.device))
        return self.train[self._order[1][index * self.size : (index + 1) * self.size]]

    def examples_before(self, step: int) -> int:
        epoch, index = divmod(step, self.per_epoch)
        return epoch * len(self.train) + index * self.size


def _distinct(task: Task, n: int, generator: torch.Generator, apart_from: Int[Tensor, "keys"] | None = None) -> Tokens:
    """`n` uniform draws, distinct where the domain can be enumerated, none with a key in `apart_from`, sorted."""
    spare = 0 if apart_from is None else len(apart_from)
    if task.domain_size is not None and task.domain_size <= ENUMERABLE:
        order = torch.randperm(task.domain_size, generator=generator, device=generator.device)
        tokens = task.at(order[: n + spare])
    else:
        tokens = task.sample(n + spare, generator)
    if apart_from is not None:
        tokens = tokens[~_among(task.keys(tokens), apart_from)]
    return tokens[:n]


def _drawn(task: Task, n: int, draw: Callable[[int], Tokens], apart_from: Int[Tensor, "keys"]) -> Tokens:
    """`n` inputs from `draw`, none with a key in `apart_from`, which is sorted."""
    kept, rounds = [draw(0)], 0
    while sum(map(len, kept)) < n:
        tokens, rounds = draw(n), rounds + 1
        kept.append(tokens[~_among(task.keys(tokens), apart_from)])
        if rounds == PATIENCE and not any(map(len, kept)):
            raise ConfigError(f"every input that {task.kind} draws is held out: set a smaller data.n_test")
    return torch.cat(kept)[:n]


def _among(keys: Int[Tensor, "batch"], some: Int[Tensor, "sorted"]) -> Bool[Tensor, "batch"]:
    if not len(some):
        return torch.zeros_like(keys, dtype=torch.bool)
    index = torch.searchsorted(some, keys).clamp(max=len(some) - 1)
    return some[index] == keys
