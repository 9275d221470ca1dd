"""A model run on every pair of elements: logits, attention, neurons, and which pairs were in the training set."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from algoscope.core.errors import SubjectError, TaskMismatchError
from algoscope.core.threads import free_cores, threads
from algoscope.data import FixedBatches, batches, held_out
from algoscope.runs.run_folder import Run
from algoscope.subjects.subject import Subject
from algoscope.tasks.base import Task, Tokens
from algoscope.tasks.groups.binary import Binary
from algoscope.tasks.groups.group_tables import Structure

LARGEST = 421  # largest n: there are n^3 logits
PORTION = 4096  # pairs in one batch


@dataclass(frozen=True, eq=False)
class Pairs:
    """The pairs (a, b) of a group, as the task writes them. `product` is the number of a b, `answer` the logit column
    of each element, `trained` whether a pair was in the training set, None if unknown.
    """

    task: Binary
    structure: Structure
    product: Int[Tensor, "n n"]
    answer: Int[Tensor, "n"]
    trained: Bool[Tensor, "n n"] | None

    @property
    def order(self) -> int:
        return self.structure.order

    @property
    def sequences(self) -> Tokens:
        """Prompts with their answers, one row per pair, ordered by a, then b."""
        first, second = (torch.from_numpy(row).to(self.answer) for row in (self.structure.first, self.structure.second))
        return self.task.sequences(first.repeat_interleave(self.order), second.repeat(self.order))

    def subsets(self) -> dict[str, Bool[Tensor, "n n"]]:
        """The sets of pairs over which losses are averaged, by name."""
        everything = {"all pairs": torch.ones_like(self.product, dtype=torch.bool)}
        if self.trained is None:
            return everything
        return everything | {"training pairs": self.trained, "held-out pairs": ~self.trained}

    def logits(self, subject: Subject) -> Float[Tensor, "n n d_vocab"]:
        """The model's logits for every pair, computed in its own float type, in float64 from here on."""
        logits = subject.answer_logits(self.sequences)[:, 0]
        return logits.double().unflatten(0, (self.order, self.order))

    def activations(self, subject: Subject) -> tuple[Mapping[int, Tensor], Float[Tensor, "layer head n n pos"]]:
        """At the answer position: the neurons of each layer [n n d_mlp] by layer, and each head's attention."""
        layers = range(subject.cfg.n_layers)
        neurons: dict[int, list[Tensor]] = {layer: [] for layer in layers if subject.cfg.d_mlp is not None}
        attention: list[Tensor] = []
        for tokens in self.sequences[:, :-1].split(PORTION):
            record = [*(("post", layer) for layer in neurons), *(("pattern", layer) for layer in layers)]
            _, cache = subject.run(tokens, record=record, at=slice(-1, None))
            for layer, kept in neurons.items():
                kept.append(cache["post", layer][:, -1])
            attention.append(torch.stack([cache["pattern", layer][:, :, -1] for layer in layers]))
        square = (self.order, self.order)
        patterns = torch.cat(attention, dim=1).double().unflatten(1, square)  # [layer n n head pos]
        return (
            {layer: torch.cat(kept).double().unflatten(0, square) for layer, kept in neurons.items()},
            patterns.movedim(3, 1),
        )


def has_pairs(subject: Subject) -> bool:
    """Whether the subject's task is the operation of a group that is not too large."""
    structure = subject.task.structure() if subject.has_task and isinstance(subject.task, Binary) else None
    return structure is not None and structure.order <= LARGEST


def cyclic_sum(task: Task) -> Structure | None:
    """The group of a task whose operation is addition modulo a number, with the elements in some order."""
    structure = task.structure() if isinstance(task, Binary) else None
    return structure if structure is not None and structure.is_cyclic_sum else None


def pairs_of(subject: Subject) -> Pairs:
    """All pairs of a subject's task; for multiplication modulo p, those without a zero.

    Raises TaskMismatchError for a subject without a task or with one that is not a group's operation, SubjectError for
    a group of more than 421 elements.
    """
    task = subject.task
    structure = task.structure() if isinstance(task, Binary) else None
    if not isinstance(task, Binary) or structure is None:
        raise TaskMismatchError(
            f"{subject.name}: the task {task.kind} is not the operation of a group, so it has no frequencies: "
            "give a model of one, such as planted:clock"
        )
    if structure.order > LARGEST:
        raise SubjectError(
            f"{subject.name}: the group has {structure.order:,} elements, so {structure.order**3:,} logits; this lens "
            f"takes at most {LARGEST}"
        )
    trained = None if subject.origin is None else _trained(subject.origin, task, structure)
    return Pairs(
        task=task,
        structure=structure,
        product=torch.from_numpy(structure.table).to(subject.device),
        answer=torch.from_numpy(structure.answer).to(subject.device),
        trained=None if trained is None else trained.to(subject.device),
    )


def _trained(run: Run, task: Binary, structure: Structure) -> Bool[Tensor, "n n"] | None:
    """The pairs of a run's fixed training set; None for fresh draws, and if the drawing device is missing here."""
    config = run.config
    device = torch.device(run.summary.device if run.is_whole else "cpu")
    if config.data.source != "fixed" or (device.type == "cuda" and not torch.cuda.is_available()):
        return None
    test = held_out(task, config.data, config.seed, device)
    drawn = batches(task, config.data, config.train.batch, config.seed, test)
    assert isinstance(drawn, FixedBatches)
    keys = structure.first[:, None] * task.order + structure.second
    return torch.from_numpy(np.isin(keys, task.keys(drawn.train).cpu().numpy()))


@contextmanager
def on_idle_cores() -> Iterator[None]:
    """Run the body with as many PyTorch threads as there are idle cores: more would wait for each other."""
    with threads(min(torch.get_num_threads(), free_cores())):
        yield


def portions(n: int) -> Iterator[slice]:
    """The first operands in small groups, so that intermediate results fit into memory."""
    step = max(1, 2**24 // n**2)
    return (slice(start, start + step) for start in range(0, n, step))
