"""module -> a copy to run: what the copy does never reaches the module of the user.

The copy of a large module shares the parameters, which nothing writes to, so that they are not held twice; buffers and
other tensors are copied. It is in eval mode, without the user's hooks, and on the CPU.
"""

import copy
import ctypes
import sys
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from algoscope.core.errors import SubjectError, one_line, shortened

WRAPPERS = ("_orig_mod", "module")  # torch.compile; DataParallel and its kin
WRAPPING = ("OptimizedModule", "DataParallel", "DistributedDataParallel", "FullyShardedDataParallel")
HOOKS = ("_forward_hooks", "_backward_hooks", "_forward_pre_hooks", "_backward_pre_hooks", "_state_dict_hooks")
SMALL = 20_000_000  # parameters up to which a copy has its own in float64
NARROW = {
    torch.float32: torch.float64, torch.float16: torch.float64, torch.bfloat16: torch.float64,
    torch.complex64: torch.complex128,
}  # fmt: skip


def unwrapped(module: nn.Module) -> nn.Module:
    """The module inside `torch.compile` and `DataParallel`."""
    while type(module).__name__ in WRAPPING:
        module = next(inner for name in WRAPPERS if isinstance(inner := getattr(module, name, None), nn.Module))
    return module


def copy_of(module: nn.Module) -> nn.Module:
    """A copy of a module that can be run without a trace in the original. Raises SubjectError where it has none."""
    module = unwrapped(module)
    parameters = list(module.parameters())
    if not parameters:
        raise SubjectError(f"{type(module).__name__} has no parameters: a model to open has weights")
    if any(p.is_meta for p in parameters):
        raise SubjectError(f"{type(module).__name__} is on the device 'meta', where it has no weights: load them first")
    uninitialised = [n for n, p in module.named_parameters() if isinstance(p, nn.parameter.UninitializedParameter)]
    if uninitialised:
        raise SubjectError(f"{uninitialised[0]} has no shape yet: call the module once before opening it")
    small = sum(p.numel() for p in parameters) <= SMALL
    memo: dict[int, Any] = {
        id(p): nn.Parameter(_wide(p.detach()) if small else p.detach().cpu(), requires_grad=False) for p in parameters
    }
    for _, value in loose_tensors(module):
        memo[id(value)] = _wide(value.detach()) if small else value.detach().cpu().clone()
    try:
        copied = copy.deepcopy(module, memo)
    except Exception as error:  # what a module holds may refuse in any way
        why = shortened(one_line(str(error)) or type(error).__name__, 200)
        raise SubjectError(f"{type(module).__name__} cannot be copied, so it was not run: {why}") from error
    drop_hooks(copied)
    for inner in copied.modules():
        inner.__dict__.pop("_compiled_call_impl", None)
        if isinstance(inner, nn.RMSNorm) and inner.eps is None:
            inner.eps = torch.finfo(float_type(module)).eps
    return copied.eval()


def loose_tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Buffers, and tensors that are plain attributes, of a module and those inside it."""
    for prefix, inner in module.named_modules():
        of_dict = {**inner._buffers, **{k: v for k, v in vars(inner).items() if isinstance(v, Tensor)}}
        for name, value in of_dict.items():
            if isinstance(value, Tensor) and not isinstance(value, nn.Parameter):
                yield (f"{prefix}.{name}" if prefix else name), value


def release_freed_memory() -> None:
    """Give freed memory back to the system, where the C library can: weights that were converted one at a time leave
    holes between the values of a run.
    """
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)


def _wide(value: Tensor) -> Tensor:
    return value.cpu().to(NARROW.get(value.dtype, value.dtype), copy=True)


def float_type(module: nn.Module) -> torch.dtype:
    """The float type of most of a module's weights."""
    sizes: dict[torch.dtype, int] = {}
    for parameter in module.parameters():
        if parameter.is_floating_point():
            sizes[parameter.dtype] = sizes.get(parameter.dtype, 0) + parameter.numel()
    return max(sizes, key=lambda dtype: sizes[dtype]) if sizes else torch.float32


def drop_hooks(copied: nn.Module) -> None:
    """Remove the user's hooks from a copy."""
    for inner in copied.modules():
        for hooks in (getattr(inner, name, {}) for name in HOOKS):
            for key, hook in list(hooks.items()):
                if not _of_torch(hook):
                    del hooks[key]


def hooked(module: nn.Module) -> tuple[str, ...]:
    """The submodules whose forward has hooks of the user, which a copy runs without."""
    return tuple(
        name or type(module).__name__
        for name, inner in unwrapped(module).named_modules()
        if not all(map(_of_torch, (*inner._forward_hooks.values(), *inner._forward_pre_hooks.values())))
    )


def _of_torch(hook: Any) -> bool:
    """Whether a hook is part of how PyTorch computes a weight (weight norm, pruning), rather than the user's own."""
    return (type(hook).__module__ or "").startswith("torch.nn.utils")
