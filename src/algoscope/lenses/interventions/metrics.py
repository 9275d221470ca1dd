"""Metrics: functions of the logits at one position, for each input; or one of the user's own, of all positions."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor

from algoscope.core.arguments import Form
from algoscope.core.errors import ArgumentError, UnknownNameError
from algoscope.core.own_code import OwnCode, load_named
from algoscope.networks.evaluation import answers_right, kl_divergence, tokens_right

Logits = Float[Tensor, "batch *pos d_vocab"]
ForcedLogits = Float[Tensor, "batch token d_vocab"]  # at the positions that predict the answer's tokens


@dataclass(frozen=True)
class Reading:
    """References of a metric: both runs' logits, and the right tokens of the clean and the corrupt input, each one
    or several that count alike."""

    clean: Logits
    corrupt: Float[Tensor, "batch *other d_vocab"]
    target: Int[Tensor, "batch target"]
    rival: Int[Tensor, "batch rival"]


Metric = Callable[[Logits, Reading], Float[Tensor, "batch"]]


def logit_diff(logits: Logits, reading: Reading) -> Float[Tensor, "batch"]:
    """The clean answer's logit minus the corrupt answer's; positive: on the clean side. Of several tokens the
    log-sum-exp of their logits, so that the difference is that of the log probabilities of the two sets.
    """
    return _of(logits, reading.target).logsumexp(dim=-1) - _of(logits, reading.rival).logsumexp(dim=-1)


def probability(logits: Logits, reading: Reading) -> Float[Tensor, "batch"]:
    """The probability of the clean answer, 0 to 1; of several tokens their sum."""
    return _of(logits.softmax(dim=-1), reading.target).sum(dim=-1)


def kl(logits: Logits, reading: Reading) -> Float[Tensor, "batch"]:
    """Kullback-Leibler divergence from the clean run's prediction, in nats; 0: the same prediction."""
    return kl_divergence(reading.clean, logits)


def exact_match(logits: Logits, reading: Reading) -> Float[Tensor, "batch"]:
    """1 where the clean answer, or one of its tokens, is the most likely token, else 0."""
    right = torch.stack([tokens_right(logits, tokens) for tokens in reading.target.unbind(dim=1)])
    return right.any(dim=0).to(logits.dtype)


MetricName = Literal["logit_diff", "probability", "kl", "exact_match"]
METRICS: dict[MetricName, Metric] = {
    "logit_diff": logit_diff,
    "probability": probability,
    "kl": kl,
    "exact_match": exact_match,
}
OwnMetric = Callable[[Float[Tensor, "batch pos d_vocab"]], Any]
AnyMetric = Annotated[
    MetricName | str | OwnMetric,
    Form(
        f"one of {', '.join(METRICS)}, or a function of logits [batch pos d_vocab] that returns a number per input, or "
        "where it stands, FILE.py:NAME"
    ),
]
PAIRWISE: tuple[MetricName, ...] = ("logit_diff",)  # those that use only the logits of target and rival


def find_metric(metric: MetricName | str | OwnMetric) -> tuple[MetricName | OwnMetric, OwnCode | None]:
    """A metric by name, or a function, which may be named by its file. Raises UnknownNameError for another name."""
    if not isinstance(metric, str):
        return metric, None
    for name in METRICS:
        if metric == name:
            return name, None
    if ".py:" not in metric:
        raise UnknownNameError("metric", metric, [*METRICS, "FILE.py:NAME"])
    function, code = load_named(metric, "a metric, a function of logits", callable)
    return cast(OwnMetric, function), code


def named(metric: MetricName | OwnMetric) -> str:
    """The name of a metric in facts and sentences."""
    name = metric if isinstance(metric, str) else getattr(metric, "__name__", "<lambda>")
    return "custom metric" if name == "<lambda>" else name


def measure_of(metric: MetricName | OwnMetric) -> Metric:
    """A metric by name, or a function of the user's own, whose results are checked."""
    if isinstance(metric, str):
        return METRICS[metric]

    def checked(logits: Logits, reading: Reading) -> Float[Tensor, "batch"]:
        must = f"{named(metric)} gets logits [batch pos d_vocab], here {list(logits.shape)}, and must return"
        try:
            values = torch.as_tensor(metric(logits.clone()), device=logits.device)
        except Exception as error:
            raise ArgumentError(f"{must} a number per input; it failed with {type(error).__name__}: {error}") from error
        if values.numel() != len(logits) or values.is_complex():
            raise ArgumentError(f"{must} a number per input, {len(logits)}, not a result of {list(values.shape)}")
        if not values.isfinite().all():
            raise ArgumentError(f"{must} finite numbers, not {values.flatten().tolist()}")
        return values.reshape(len(logits)).to(logits.dtype)

    return checked


@dataclass(frozen=True)
class ForcedMetric:
    """A metric of answers of several tokens, each in a run of its own that reads the input and then the answer's tokens
    (teacher-forced): a number for each answer, from the logits at its tokens, those of the clean run, and its tokens;
    and what the metric makes of the numbers of all targets and rivals.
    """

    of_one: Callable[[ForcedLogits, ForcedLogits, Int[Tensor, "batch token"]], Float[Tensor, "batch"]]
    of_all: Callable[[Float[Tensor, "target *rest"], Float[Tensor, "rival *rest"]], Float[Tensor, "*rest"]]


def _log_probability(
    logits: ForcedLogits, clean: ForcedLogits, answer: Int[Tensor, "batch token"]
) -> Float[Tensor, "batch"]:
    """Of the whole answer: the sum over its tokens, each given the input and the tokens before it."""
    return _of(logits.log_softmax(dim=-1), answer[..., None])[..., 0].sum(dim=-1)


FORCED: dict[MetricName, ForcedMetric] = {
    "logit_diff": ForcedMetric(_log_probability, lambda targets, rivals: targets.logsumexp(0) - rivals.logsumexp(0)),
    "probability": ForcedMetric(_log_probability, lambda targets, _: targets.exp().sum(0)),
    "kl": ForcedMetric(
        lambda logits, clean, _: kl_divergence(clean, logits).sum(dim=-1), lambda targets, _: targets[0]
    ),
    "exact_match": ForcedMetric(
        lambda logits, _, answer: answers_right(logits, answer).to(logits.dtype), lambda targets, _: targets.amax(0)
    ),
}


def _of(values: Logits, tokens: Int[Tensor, "batch *pos answer"]) -> Float[Tensor, "batch *pos answer"]:
    return values.gather(-1, tokens)
