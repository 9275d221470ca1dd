"""A fixed set of inputs for all checkpoints of a run, and losses and accuracies on it by answer token and class."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from algoscope.core.errors import ConfigError
from algoscope.data import seeded
from algoscope.networks.evaluation import cross_entropy, tokens_right
from algoscope.subjects.subject import Subject
from algoscope.tasks.base import Task, Tokens

EXHAUSTIVE_UP_TO = 20_000  # largest task of which every input is used
POOL = 100_000  # random draws from which the inputs of each class are taken
PORTION = 4096  # inputs in one batch


@dataclass(frozen=True)
class ProbeSet:
    """Full sequences: the first `n_plain` are scored by answer token, `rows` gives those of each class by its name."""

    tokens: Tokens
    n_plain: int
    rows: Mapping[str, Int[Tensor, "some"]]
    labels: tuple[str, ...]  # of the answer's tokens
    coverage: Mapping[str, Any]


def probe_set_of(
    task: Task, by: str | None = None, *, n_inputs: int = 2000, per_class: int = 200, seed: int = 0
) -> ProbeSet:
    """Every input of the task where there are at most 20,000; else `n_inputs` random ones, and up to `per_class` of
    each class of the scheme `by` (None: the task's first), taken from 100,000 draws.

    Raises ConfigError for fewer than one of either, UnknownNameError for a scheme that the task does not have.
    """
    if n_inputs < 1 or per_class < 1:
        raise ConfigError(f"a probe of {n_inputs} inputs and {per_class} of each class is empty: give 1 or more")
    scheme = by or task.class_schemes[0]
    names = task.class_names(scheme)
    whole = task.has_at_most(EXHAUSTIVE_UP_TO)
    if whole:
        tokens = task.every()
        n_plain, number = len(tokens), task.class_of(tokens, scheme)
    else:
        device = torch.device("cpu")
        plain, pool = task.sample(n_inputs, seeded(device, seed, 0)), task.sample(POOL, seeded(device, seed, 1))
        of_class = members_by_class(task, scheme, pool, per_class)
        kept = torch.cat(list(of_class.values()))
        tokens, n_plain = torch.cat([plain, kept]), n_inputs
        number = torch.cat([torch.full((n_inputs,), -1), task.class_of(kept, scheme)])
    rows = {name: (number == i).nonzero()[:, 0] for i, name in enumerate(names)}
    rows = {name: indices for name, indices in rows.items() if len(indices)}
    return ProbeSet(
        tokens=tokens,
        n_plain=n_plain,
        rows=rows,
        labels=_labels(task),
        coverage={
            "method": "exhaustive" if whole else "sampled",
            "inputs": n_plain,
            "of": task.domain_size,
            "scheme": scheme,
            "classes": {name: {"meaning": names[name], "inputs": len(indices)} for name, indices in rows.items()},
            "seed": seed,
        },
    )


def members_by_class(task: Task, scheme: str, pool: Tokens, per_class: int) -> dict[str, Int[Tensor, "_members pos"]]:
    """Up to `per_class` members of each class of the scheme, by its name: the first in the pool."""
    number = task.class_of(pool, scheme)
    names = task.class_names(scheme)
    return {name: pool[(number == i).nonzero()[:per_class, 0]] for i, name in enumerate(names)}


def _labels(task: Task) -> tuple[str, ...]:
    """Labels of the answer's tokens: numbers, and the name of the end of sequence."""
    n = task.n_ctx - task.prompt_length
    numbered = tuple(f"token {i + 1}" for i in range(n))
    ends = int(task.edge_inputs()[0, -1])
    return (*numbered[:-1], "<EOS>") if task.vocabulary[ends] == "<EOS>" else numbered


@torch.no_grad()
def answer_numbers(subject: Subject, probe: ProbeSet) -> dict[str, float]:
    """Losses in nats and accuracies (0 = none right, 1 = all), each token given the right ones before it: per answer
    token and for whole answers over the first `n_plain` inputs (the loss of an answer is the mean over its tokens), and
    the accuracy of whole answers in each class.
    """
    losses, hits = [], []
    for tokens in probe.tokens.split(PORTION):
        targets = tokens[:, subject.task.prompt_length :]
        logits = subject.answer_logits(tokens).double()
        losses.append(cross_entropy(logits, targets))
        hits.append(tokens_right(logits, targets))
    loss, right = torch.cat(losses)[: probe.n_plain].mean(dim=0), torch.cat(hits)
    whole, share = right.all(dim=1).double(), right[: probe.n_plain].double().mean(dim=0)
    numbers = {"loss: all tokens": float(loss.mean())}
    numbers |= {f"loss: {label}": value for label, value in zip(probe.labels, loss.tolist(), strict=True)}
    numbers |= {"accuracy: whole answer": float(whole[: probe.n_plain].mean())}
    numbers |= {f"accuracy: {label}": value for label, value in zip(probe.labels, share.tolist(), strict=True)}
    return numbers | {f"class: {name}": float(whole[rows].mean()) for name, rows in probe.rows.items()}
