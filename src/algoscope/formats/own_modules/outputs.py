"""logits -> what the module returns: all of them or some, capped, scaled, or as probabilities."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from algoscope.formats.own_modules.norm_fitting import same
from algoscope.formats.own_modules.tracing import Unexplained


@dataclass(frozen=True)
class Output:
    """What a module does with the output of its last linear map."""

    n_logits: int
    soft_cap: float | None = None
    factor: float = 1.0
    probabilities: str | None = None
    """`log_softmax` or `softmax`, where it returns no logits."""

    def of(self, logits: Tensor) -> Tensor:
        """What the module returns for logits of ours, which are scaled, cut and capped already."""
        if self.probabilities == "log_softmax":
            return logits.log_softmax(-1)
        return logits.softmax(-1) if self.probabilities else logits


def fit_output(y: Tensor, output: Tensor, scalars: Iterable[float]) -> Output:
    """How an output [... d_vocab] follows from the last linear map's. Raises Unexplained where none of ours does."""
    n = output.shape[-1]
    if n <= y.shape[-1]:
        y = y[..., :n]
        if same(y, output):
            return Output(n)
        if same(y.log_softmax(-1), output):
            return Output(n, probabilities="log_softmax")
        if same(y.softmax(-1), output):
            return Output(n, probabilities="softmax")
        factor = float((y * output).sum() / y.pow(2).sum())
        if same(factor * y, output):
            return Output(n, factor=factor)
        for cap in {*scalars, *(1 / x for x in scalars)}:
            if same(cap * torch.tanh(y / cap), output):
                return Output(n, soft_cap=cap)
    raise Unexplained("head", "what the module returns is not the output of its last matrix", 10**9)
