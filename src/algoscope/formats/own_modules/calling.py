"""module -> how it is called: tokens [batch pos] in, logits [batch pos d_vocab] out.

Modules take tokens with the batch or the sequence first, some with a mask or targets, and return logits alone, in a
tuple, in a dictionary or in an object, for every position or for the last one only. Each way is tried.
"""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from algoscope.core.errors import SubjectError, one_line, shortened, with_article

NO_VALUE = ("targets", "labels", "target", "y", "cache", "kv_cache", "past_key_values", "past", "key_padding_mask")
MASKS = ("mask", "attn_mask", "attention_mask", "src_mask", "tgt_mask", "causal_mask", "x_mask")
ZERO = ("start_pos", "offset", "pos_offset", "position_offset", "start")
LOGITS = ("logits", "output", "outputs", "out", "prediction", "predictions")


@dataclass(frozen=True)
class Call:
    """A way to call a module."""

    batch_first: bool
    extra: tuple[tuple[str, Callable[[int], Any]], ...] = ()
    """Required arguments beside the tokens, for a sequence of that length."""
    summary: str = "module(tokens)"

    def __call__(self, module: nn.Module, tokens: Tensor) -> Tensor | None:
        """What the module returns for tokens [batch pos], with the batch first; None where nothing in it is logits."""
        extra = {name: make(tokens.shape[1]) for name, make in self.extra}
        out = logits_in(module(tokens if self.batch_first else tokens.T, **extra))
        if out is None or out.ndim == 2 or self.batch_first:
            return out
        return out.transpose(0, 1)


def logits_in(out: Any) -> Tensor | None:
    """The first tensor [batch pos d_vocab] in what a module returns, or [batch d_vocab] where there is none."""
    found = [value for value in _tensors(out) if value.is_floating_point()]
    whole = [value for value in found if value.ndim == 3] or [value for value in found if value.ndim == 2]
    whole = [value for value in whole if value.shape[-1] > 1] or whole  # one column is a value or a loss
    return whole[0] if whole else None


def _tensors(out: Any) -> list[Tensor]:
    if isinstance(out, Tensor):
        return [out]
    if not isinstance(out, Mapping | tuple | list):
        out = {k: v for k, v in vars(out).items() if not k.startswith("_")} if hasattr(out, "__dict__") else {}
    if isinstance(out, Mapping):
        first = [out[name] for name in LOGITS if name in out]
        out = [*first, *(value for name, value in out.items() if name not in LOGITS)]
    return [tensor for value in out for tensor in (_tensors(value) if value is not None else [])]


def ways_to_call(module: nn.Module) -> list[Call]:
    """Ways to call a module with tokens, the likeliest first. Raises SubjectError where it needs more than tokens."""
    required: list[str] = []
    try:
        parameters = list(inspect.signature(module.forward).parameters.values())
    except ValueError:  # of a module of TorchScript it is not known
        parameters = []
    for i, parameter in enumerate(parameters):
        variadic = parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        if i > 0 and not variadic and parameter.default is parameter.empty:
            required.append(parameter.name)
    options: list[list[tuple[str, Callable[[int], Any]]]] = [[]]
    for name in required:
        makers: list[Callable[[int], Any]]
        if name in MASKS:
            makers = [_hidden, _additive, _visible, _no_value]
        elif name in NO_VALUE:
            makers = [_no_value]
        elif name in ZERO:
            makers = [_zero]
        else:
            raise SubjectError(
                f"{type(module).__name__}.forward needs {name!r} beside the tokens: give it a default, or wrap the "
                "module in one that takes tokens alone"
            )
        options = [[*before, (name, make)] for before in options for make in makers]
    calls = [Call(batch_first, tuple(extra)) for batch_first in (True, False) for extra in options]
    return [Call(c.batch_first, c.extra, _summary(c)) for c in calls]


def _summary(call: Call) -> str:
    tokens = "tokens [batch pos]" if call.batch_first else "tokens [pos batch]"
    extra = "".join(f", {name}={make.__doc__}" for name, make in call.extra)
    return f"module({tokens}{extra})"


def _no_value(n: int) -> None:
    """None"""


def _zero(n: int) -> int:
    """0"""
    return 0


def _hidden(n: int) -> Tensor:
    """True at later positions"""
    return torch.ones(n, n, dtype=torch.bool).triu(1)


def _visible(n: int) -> Tensor:
    """True at earlier positions"""
    return torch.ones(n, n, dtype=torch.bool).tril()


def _additive(n: int) -> Tensor:
    """minus infinity at later positions"""
    return torch.full((n, n), -torch.inf).triu(1)


def why(error: BaseException) -> str:
    """What an error inside a module says, on one line."""
    text = one_line(str(error)) or "no message"
    return f"{with_article(type(error).__name__)}: {shortened(text, 200)}"
