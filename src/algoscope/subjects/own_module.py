"""A module of PyTorch in memory, opened as a subject."""

from typing import Any

import torch
from torch import nn

from algoscope.core.ambient import settled
from algoscope.core.errors import some_of
from algoscope.formats.own_modules.conversion import Conversion, convert
from algoscope.formats.own_modules.safe_copy import hooked
from algoscope.subjects._tokenizers import text_of
from algoscope.subjects.subject import Subject
from algoscope.subjects.text import Numbers
from algoscope.tasks.base import Task


@settled()
def open_module(
    module: nn.Module,
    name: str,
    task: Task | None,
    tokenizer: Any,
    device: torch.device,
    dtype: torch.dtype | None,
    n_ctx: int | None = None,
) -> Subject:
    """A module of PyTorch that maps tokens to logits, converted to our transformer and compared with it.

    The module, its mode, its gradients and its hooks stay as they are. `note` of the subject says how far both differ;
    `n_ctx` limits the length of inputs.

    Raises SubjectError, naming the part, for a module that is no transformer of ours.
    """
    conversion = convert(module, n_ctx, at_least=1 if task is None else task.n_ctx)
    model = conversion.model.to(device, dtype)
    text = text_of(tokenizer, model.cfg.d_vocab) or (Numbers(model.cfg.d_vocab) if task is None else None)
    subject = Subject(name, model, task, text=text)
    subject.note = account_of(conversion)
    if of_user := hooked(module):
        subject.note += f"; computed without the hooks of {some_of(of_user)}, which may change what the module returns"
    return subject


def account_of(conversion: Conversion) -> str:
    """How a module was converted, in a line: the largest difference, and what the conversion leaves out."""
    n = conversion.lengths
    every = n == tuple(range(n[0], n[-1] + 1))
    lengths = f"{n[0]} to {n[-1]}" if every and len(n) > 1 else ", ".join(map(str, n))
    lines = [
        f"converted from a module of PyTorch: on inputs of {lengths} tokens, with its own weights and with random ones,"
        f" the logits differ by at most {conversion.largest_difference:.0e} of the largest one, in float64"
    ]
    if conversion.probabilities:
        lines.append(f"the module returns a {conversion.probabilities}, this model the logits before it")
    if conversion.unused:
        lines.append(f"left out, since no logit depends on it: {some_of(conversion.unused)}")
    if conversion.rounded:
        lines.append(f"computed without its rounding: {some_of(conversion.rounded)}")
    return "; ".join(lines)
