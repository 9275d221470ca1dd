"""The inputs and the measures of the ablation lens."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.stats import binomtest
from torch import Tensor

from algoscope.core.errors import ConfigError, SubjectError
from algoscope.data import all_or_sample, seeded
from algoscope.lenses.inputs.probe_set import members_by_class
from algoscope.lenses.inputs.repeated_tokens import repeated_blocks
from algoscope.networks.evaluation import answers_right, cross_entropy, kl_divergence
from algoscope.subjects.subject import Subject
from algoscope.tasks.base import Tokens

POOL = 100_000  # inputs from which those of each class are taken; of a domain no larger, all inputs
N_INPUTS, N_TEXTS = 2000, 16  # reference inputs of a task, and rows of random tokens


@dataclass(frozen=True)
class Trial:
    """The inputs of the ablation lens: full sequences, of which the first `n_reference` are the reference inputs."""

    tokens: Tokens
    n_reference: int
    meaning: str
    at: slice  # positions whose logits are read
    whole: bool  # is the whole answer scored (task), or each token (free text)?
    classes: Mapping[str, tuple[slice, slice]]  # rows and positions of each class; the first is the main one

    @property
    def cost(self) -> str:
        """The fact that holds the cost of an ablation."""
        return "drop" if self.whole else "loss_increase"

    @property
    def targets(self) -> Int[Tensor, "batch read"]:
        return self.tokens[:, 1:][:, self.at]

    def read(
        self,
        logits: Float[Tensor, "edit batch read d_vocab"],
        targets: Int[Tensor, "batch read"],
        base: Float[Tensor, "batch read d_vocab"],
    ) -> Float[Tensor, "edit batch token measure"]:
        """With a task, whether the answer is right (1 or 0); else, for each token, the loss, and the KL divergence from
        the prediction without ablation, whose logits are `base`.
        """
        targets = targets.expand(len(logits), -1, -1)
        if self.whole:
            return answers_right(logits, targets)[..., None, None].to(logits.dtype)
        return torch.stack([cross_entropy(logits, targets), kl_divergence(base.expand_as(logits), logits)], dim=-1)

    def summary(self, values: Float[np.ndarray, "batch token measure"]) -> dict[str, Any]:
        """The measures of the main class, and those of each class."""
        means = {name: values[where].mean(axis=(0, 1)).tolist() for name, where in self.classes.items()}
        if not self.whole:
            by_class = [{"class": name, "loss": loss, "kl": kl} for name, (loss, kl) in means.items()]
            return {"loss": by_class[0]["loss"], "kl": by_class[0]["kl"], "by_class": by_class}
        first, *names = means
        n_right = int(values[self.classes[first]].sum())
        bounds = binomtest(n_right, self.n_reference).proportion_ci(0.95, method="exact")
        return {
            "accuracy": n_right / self.n_reference,
            "interval_95": [float(bounds.low), float(bounds.high)],
            "by_class": [
                {"class": name, "n": len(values[self.classes[name]]), "accuracy": means[name][0]} for name in names
            ],
        }

    def lost(self, base: Mapping[str, Any], without: Mapping[str, Any]) -> float:
        """The cost of one ablation: lost accuracy, or nats per token."""
        return base["accuracy"] - without["accuracy"] if self.whole else without["loss"] - base["loss"]


def trial_of(
    subject: Subject, by: str | None, n_inputs: int | None, per_class: int, texts: Sequence[str], seed: int
) -> Trial:
    if not subject.cfg.causal:
        raise SubjectError(f"{subject.name} is not causal: it would see the answer")
    if not subject.has_task:
        return _of_text(subject, texts, N_TEXTS if n_inputs is None else n_inputs, seed)
    if texts:
        raise ConfigError(f"{subject.name} has a task, so its inputs are drawn at random: leave out {', '.join(texts)}")
    return _of_task(subject, by, N_INPUTS if n_inputs is None else n_inputs, per_class, seed)


def _of_task(subject: Subject, by: str | None, n_inputs: int, per_class: int, seed: int) -> Trial:
    task, everywhere = subject.task, slice(None)
    if n_inputs < 2 or per_class < 1:
        raise ConfigError(f"ablation needs 2 inputs or more and 1 of each class, not {n_inputs} and {per_class}")
    scheme = by or task.class_schemes[0]
    plain = task.sample(n_inputs, seeded(subject.device, seed, 0))
    pool = all_or_sample(task, POOL, seeded(subject.device, seed, 3))
    order = torch.randperm(len(pool), generator=seeded(torch.device("cpu"), seed, 2)).to(subject.device)
    chosen = members_by_class(task, scheme, pool[order], per_class)
    ends = np.cumsum([n_inputs, *map(len, chosen.values())]).tolist()
    rows = {name: (slice(ends[i], ends[i + 1]), everywhere) for i, name in enumerate(chosen) if len(chosen[name])}
    return Trial(
        tokens=torch.cat([plain, *chosen.values()]),
        n_reference=n_inputs,
        meaning=f"{n_inputs:,} random inputs of {task.kind}",
        at=task.answer_slice,
        whole=True,
        classes={"": (slice(0, n_inputs), everywhere), **rows},
    )


def _of_text(subject: Subject, texts: Sequence[str], n_inputs: int, seed: int) -> Trial:
    n, everywhere = len(texts) or n_inputs, slice(None)
    if n < 2:
        raise ConfigError(f"ablation needs 2 texts or more, as resampling takes outputs from another text, not {n}")
    if texts:
        rows = [subject.to_tokens(text)[0] for text in texts]
        length = min(map(len, rows))
        if length < 2:
            raise ConfigError("a text of 1 token predicts nothing: give texts of 2 tokens or more")
        cut = torch.stack([row[:length] for row in rows])
        classes = {"all tokens": (everywhere, everywhere)}
        return Trial(cut, n, f"{n:,} texts of {length} tokens", everywhere, whole=False, classes=classes)
    [tokens] = repeated_blocks(subject, n, seed, n_lengths=1)
    start = (tokens.shape[1] + len(subject.text.encode(""))) // 2  # of the second copy
    classes = {"second copy": (everywhere, slice(start, None)), "first copy": (everywhere, slice(None, start))}
    return Trial(tokens, n, f"{n:,} rows of random tokens, each block twice", everywhere, False, classes)
