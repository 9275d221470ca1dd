"""Subjects of which only the logits are known: functions, and modules that cannot be converted."""

import copy
import sys
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from algoscope.core.ambient import find_device
from algoscope.core.errors import SubjectError, shown
from algoscope.core.own_code import reason
from algoscope.networks.logits_only import LogitsOnly, LogitsShape
from algoscope.networks.shared_prefixes import plain_logits
from algoscope.subjects._tokenizers import text_of
from algoscope.subjects.subject import Subject
from algoscope.tasks.base import Task, Tokens

ANY_LENGTH = 1 << 20  # the context in tokens where nothing says how long it is
FUNCTION = "a function from tokens to logits"
EXPECTED = "logits are a tensor of floats [batch pos d_vocab], or [batch d_vocab] of the last position"


def black_box(
    call: Callable[[Tokens], Any],
    name: str,
    task: Task | None = None,
    tokenizer: Any = None,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    why: str = FUNCTION,
    n_ctx: int | None = None,
) -> Subject:
    """A subject of a function from tokens to logits, or of a copy of a module in evaluation mode.

    It is called on a few inputs, twice, so that what it cannot do is said at once.

    Args:
        call: takes tokens [batch pos]; returns logits [batch pos d_vocab], or [batch d_vocab] of the last position,
            alone, first of several results, or under the name `logits`.
        name: its name in findings.
        task: what it is asked.
        tokenizer: see `text_of`; None: the vocabulary of the task.
        device: where its tokens are; None: where the weights of a module are, else the CPU.
        dtype: the float type of a module; None: its own.
        why: why no more than logits is known.
        n_ctx: the longest input; None: that of the task, else any.
    Raises:
        SubjectError: for what does not return logits, and where there is neither a task nor a tokenizer.
    """
    if task is None and tokenizer is None:
        raise SubjectError(f"{name} needs a task, such as task=ag.Addition(n_digits=3), or a tokenizer")
    sizes: dict[str, Any] = {"task": task, "why": why, "n_ctx": n_ctx}
    if isinstance(call, nn.Module):
        weight = next(call.parameters(), torch.zeros(0))
        place = weight.device if device is None else find_device(device)
        network = _of_module(_copied(call, name), dtype or weight.dtype, name, device=place, **sizes)
    elif dtype is not None:
        raise SubjectError(
            f"{name} is a function, which decides itself in which float type it computes: leave out dtype"
        )
    else:
        network = _network(call, name, device=find_device(device or "cpu"), **sizes)
    subject = Subject(name, network, task, text=text_of(tokenizer, network.cfg.n_logits))
    tokens, at = _some_tokens(task, network.like.device), task.answer_slice if task else slice(-1, None)
    first, second = (plain_logits(network, tokens, at) for _ in range(2))
    change = float((first - second).abs().nan_to_num().max())
    subject.note = f"a black box: {why}"
    if change:
        subject.note += (
            f"; two runs on the same input differ by up to {change:.2g} logits, so another run may count otherwise"
        )
    return subject


def _of_module(module: nn.Module, dtype: torch.dtype, name: str, **options: Any) -> LogitsOnly:
    """The network of a module that is ours, in a float type."""

    def converted(dtype: torch.dtype) -> LogitsOnly:
        return _of_module(copy.deepcopy(module), dtype, name, **options)

    network = _network(module.to(options["device"], dtype), name, **options, convert=converted)
    if dtype == torch.float64 and network.like.dtype != dtype:
        raise SubjectError(f"{name} gives {network.like.dtype} with weights in {dtype}: it does not compute in float64")
    return network


def _network(
    call: Callable[[Tokens], Any],
    name: str,
    task: Task | None,
    device: torch.device,
    why: str,
    n_ctx: int | None,
    convert: Callable[[torch.dtype], LogitsOnly] | None = None,
) -> LogitsOnly:
    """The network, its sizes read from what it returns."""
    read = partial(_logits, call, name)
    logits = read(_some_tokens(task, device))
    d_vocab, longest = (logits.shape[-1], ANY_LENGTH) if task is None else (task.d_vocab, task.n_ctx)
    shape = LogitsShape(d_vocab, logits.shape[-1], n_ctx or longest)
    return LogitsOnly(read, shape, logits.ndim == 2, logits[:0], why, convert)


def _some_tokens(task: Task | None, device: torch.device) -> Tokens:
    """Some inputs, in another number than they have positions, so that one is not taken for the other."""
    if task is None:
        return torch.zeros(3, 2, dtype=torch.long, device=device)
    edge = task.edge_inputs()[:, :-1].to(device)
    return edge[torch.arange(edge.shape[1] + 1) % len(edge)]


def _logits(call: Callable[[Tokens], Any], name: str, tokens: Tokens) -> Tensor:
    """What a function returns for tokens: logits [batch pos d_vocab], or [batch d_vocab] of the last position."""
    try:
        with torch.no_grad(), redirect_stdout(sys.stderr):
            result = call(tokens.clone())
    except (Exception, SystemExit) as error:
        raise SubjectError(f"{name} cannot read tokens of shape {list(tokens.shape)}: {reason(error)}") from error
    logits = _tensor_in(result)
    if not isinstance(logits, Tensor):
        raise SubjectError(f"{name} returns {shown(result)}: {EXPECTED}")
    if not logits.is_floating_point() or logits.is_meta:
        raise SubjectError(f"{name} returns {logits.dtype} on {logits.device}: {EXPECTED}")
    leading, (n_inputs, n_pos) = tuple(logits.shape[:-1]), tokens.shape
    if leading not in ((n_inputs, n_pos), (n_inputs, 1), (n_inputs,)):
        raise SubjectError(f"{name} returns {list(logits.shape)} for tokens of shape {list(tokens.shape)}: {EXPECTED}")
    last_only = leading == (n_inputs, 1) and n_pos > 1
    return (logits[:, 0] if last_only else logits).detach().to(tokens.device, copy=True)


def _tensor_in(result: Any) -> Any:
    """The logits in what a function returns."""
    if isinstance(result, Mapping) and "logits" in result:
        return result["logits"]
    if hasattr(result, "logits"):
        return result.logits
    return result[0] if isinstance(result, tuple | list) and result else result


def _copied(module: nn.Module, name: str) -> nn.Module:
    try:
        return copy.deepcopy(module).eval().requires_grad_(False)
    except Exception as error:  # what a module holds may refuse in any way
        raise SubjectError(f"{name} cannot be copied: {reason(error)}; give a function that calls it") from error
