"""Metrics: functions of the logits at one position, for each input."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from jaxtyping import Float, Int
from torch import Tensor

from algoscope.networks.evaluation import kl_divergence, tokens_right

Logits = Float[Tensor, "batch d_vocab"]


@dataclass(frozen=True)
class Reading:
    """References of a metric: both runs' logits, and the right tokens of the clean and the corrupt input."""

    clean: Logits
    corrupt: Logits
    target: Int[Tensor, "batch"]
    rival: Int[Tensor, "batch"]


Metric = Callable[[Logits, Reading], Float[Tensor, "batch"]]


def logit_diff(logits: Logits, reading: Reading) -> Float[Tensor, "batch"]:
    """The clean answer's logit minus the corrupt answer's; positive: on the clean side."""
    return _of(logits, reading.target) - _of(logits, reading.rival)


def probability(logits: Logits, reading: Reading) -> Float[Tensor, "batch"]:
    """The probability of the clean answer, 0 to 1."""
    return _of(logits.softmax(dim=-1), reading.target)


def kl(logits: Logits, reading: Reading) -> Float[Tensor, "batch"]:
    """Kullback-Leibler divergence from the clean run's prediction, in nats; 0: the same prediction."""
    return kl_divergence(reading.clean, logits)


def exact_match(logits: Logits, reading: Reading) -> Float[Tensor, "batch"]:
    """1 where the clean answer is the most likely token, else 0."""
    return tokens_right(logits, reading.target).to(logits.dtype)


MetricName = Literal["logit_diff", "probability", "kl", "exact_match"]
METRICS: dict[MetricName, Metric] = {
    "logit_diff": logit_diff,
    "probability": probability,
    "kl": kl,
    "exact_match": exact_match,
}
PAIRWISE: tuple[MetricName, ...] = ("logit_diff",)  # those that use only the logits of target and rival


def _of(values: Logits, tokens: Int[Tensor, "batch"]) -> Float[Tensor, "batch"]:
    return values.gather(-1, tokens[:, None])[:, 0]
