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
from algoscope.core.errors import SubjectError, shortened, shown, some_of, with_article
from algoscope.core.own_code import reason
from algoscope.formats.own_modules.calling import LOGITS, MASKS, Call, ways_to_call
from algoscope.formats.own_modules.safe_copy import drop_hooks, loose_tensors, unwrapped
from algoscope.networks.logits_only import LogitsOnly, LogitsShape
from algoscope.networks.shared_prefixes import plain_logits
from algoscope.subjects._tokenizers import text_of
from algoscope.subjects.subject import Subject
from algoscope.tasks.base import Task, Tokens

ROUNDING = 100  # units of rounding of the largest logit by which an input's logits may depend on the batch
LONGEST = 300  # characters of an exception
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
        network = _of_module(_copied(call, name), dtype, name, device=place, **sizes)
    elif dtype is not None:
        raise SubjectError(
            f"{name} is a function, which decides itself in which float type it computes: leave out dtype"
        )
    else:
        network = _network(call, name, device=find_device(device or "cpu"), **sizes)
    subject = Subject(name, network, task, text=text_of(tokenizer, network.cfg.n_logits))
    tokens, at = _some_tokens(task, network.like.device), task.answer_slice if task else slice(-1, None)
    first, second = (plain_logits(network, tokens, at) for _ in range(2))
    change = _difference(first, second)
    subject.note = f"a black box: {why}"
    if change:
        subject.note += (
            f"; two runs on the same input differ by up to {change:.2g} logits, so another run may count otherwise"
        )
    return subject


def _of_module(module: nn.Module, dtype: torch.dtype | None, name: str, **options: Any) -> LogitsOnly:
    """The network of a module that is ours, in a float type; None: its own."""

    def converted(dtype: torch.dtype) -> LogitsOnly:
        return _of_module(copy.deepcopy(module), dtype, name, **options)

    module = module.to(options["device"]) if dtype is None else module.to(options["device"], dtype)
    calls = [call for call in ways_to_call(module) if not any(key in MASKS for key, _ in call.extra)]
    refusals = [SubjectError(f"{name} needs a mask, whose meaning only you know: give a function of tokens alone")]
    for call in calls:
        try:
            network = _network(partial(_called, call, module), name, **options, convert=converted)
            break
        except SubjectError as error:
            refusals.append(error)
    else:
        raise refusals[min(1, len(calls))]
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
    tokens = _some_tokens(task, device)
    logits = read(tokens)
    if not _difference(logits, read(tokens)):  # else what the other inputs do cannot be told
        apart, largest = _difference(logits[-1:], read(tokens[-1:])), float(logits.abs().nan_to_num().max())
        if apart > ROUNDING * torch.finfo(logits.dtype).eps * largest:
            raise SubjectError(
                f"{name} gives an input other logits, by up to {apart:.2g}, where others are read with it: it must "
                "read each row of tokens [batch pos] by itself"
            )
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
        why = shortened(reason(error), LONGEST)
        raise SubjectError(f"{name} cannot read tokens of shape {list(tokens.shape)}: {why}") from error
    logits = _tensor_in(result)
    if not isinstance(logits, Tensor) or not logits.is_floating_point() or logits.is_meta:
        raise SubjectError(f"{name} returns {_described(result)}: {EXPECTED}")
    leading, (n_inputs, n_pos) = tuple(logits.shape[:-1]), tokens.shape
    if leading not in ((n_inputs, n_pos), (n_inputs, 1), (n_inputs,)):
        raise SubjectError(f"{name} returns {list(logits.shape)} for tokens of shape {list(tokens.shape)}: {EXPECTED}")
    last_only = leading == (n_inputs, 1) and n_pos > 1
    return (logits[:, 0] if last_only else logits).detach().to(tokens.device, copy=True)


def _difference(one: Tensor, other: Tensor) -> float:
    return float((one - other).abs().nan_to_num().max())


def _called(call: Call, module: nn.Module, tokens: Tokens) -> Any:
    """What a module returns, the batch first."""
    extra = {key: make(tokens.shape[1]) for key, make in call.extra}
    result = module(tokens if call.batch_first else tokens.T, **extra)
    logits = _tensor_in(result)
    is_turned = isinstance(logits, Tensor) and logits.ndim == 3 and not call.batch_first
    return logits.transpose(0, 1) if is_turned else result


def _tensor_in(result: Any) -> Any:
    """The logits in what a function returns: the first of several results, or the one that is called so."""
    if isinstance(result, tuple | list) and result:
        return result[0]
    named = result if isinstance(result, Mapping) else {key: getattr(result, key, None) for key in LOGITS}
    return result if isinstance(result, Tensor) else next((named[key] for key in LOGITS if key in named), None)


def _described(result: Any) -> str:
    if isinstance(result, Tensor):
        return f"a tensor of {str(result.dtype).removeprefix('torch.')} {list(result.shape)} on {result.device}"
    if isinstance(result, Mapping):
        return f"{with_article(type(result).__name__)} with {some_of(map(repr, result))} and no 'logits'"
    return shown(result)


def _copied(module: nn.Module, name: str) -> nn.Module:
    """A copy in evaluation mode, without the user's hooks: running it leaves no trace in the original."""
    module = unwrapped(module)
    try:
        copied = copy.deepcopy(module, {id(value): value.detach().clone() for _, value in loose_tensors(module)})
        copied.eval()
    except Exception as error:  # what a module holds may refuse in any way
        raise SubjectError(f"{name} cannot be copied: {reason(error)}; give a function that calls it") from error
    drop_hooks(copied)
    return copied
