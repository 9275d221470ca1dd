"""module, tokens -> events: every operation that a module computes, in float64, with its own weights or random ones.

A trace sees what PyTorch computes, not how a module is written: a matrix product is one whether it comes from
`nn.Linear`, `einsum`, `@` or `nn.MultiheadAttention`. Weights are converted to float64 where an operation needs them,
one at a time, and rounding to a narrower type inside the module is left out.
"""

import math
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from algoscope.formats.own_modules.safe_copy import NARROW, loose_tensors

AT_EMBEDDING = -1
EMBEDDINGS = ("embedding", "index", "index_select")
PERIOD = 4_000_037  # random values that are drawn; those of larger weights repeat
MATRIX = 2  # dimensions from which a random weight is scaled as a matrix


class OwnWeightWritten(Exception):  # noqa: N818  # never leaves this room
    """A module that writes to its own parameters while it runs."""


class Stop(Exception):  # noqa: N818  # never leaves this room
    """The last event that a caller asked for has been seen."""


class Unexplained(Exception):  # noqa: N818  # never leaves this room
    """A part of a module that is none of ours. The message names the part."""

    def __init__(self, part: str, message: str, event: int = 0, path: str = "") -> None:
        super().__init__(message)
        self.part, self.event, self.path = part, event, path
        """How far the reading got, as the number of an event, and the submodule."""


class Value:
    """A tensor as it was at an event, and where it lies.

    Attributes:
        raw: the tensor; of a weight, as the module stores it.
        place: its storage, and how often that was written to before.
        is_data: whether it depends on the tokens; if not, it depends on weights and constants only.
        layout: size, stride and offset within its storage.
    """

    __slots__ = ("_read", "is_data", "layout", "place", "raw")

    def __init__(self, raw: Tensor, place: tuple[int, int], is_data: bool, read: Callable[[Tensor], Tensor]) -> None:
        self.raw, self.place, self.is_data, self._read = raw, place, is_data, read
        self.layout = tuple(raw.shape), tuple(raw.stride()), int(raw.storage_offset())

    @property
    def tensor(self) -> Tensor:
        """In float64, with the values of the run; of a weight, converted anew each time, which saves memory."""
        return self.raw if self.is_data else self._read(self.raw)


class Event:
    """An operation on values that depend on the tokens.

    Attributes:
        index: its number in the run.
        args: its arguments, lists flattened; a tensor is a `Value`.
        path: the submodule that computed it.
    """

    __slots__ = ("args", "index", "op", "outs", "path")

    def __init__(self, index: int, op: str, path: str) -> None:
        self.index, self.op, self.path = index, op, path
        self.args: list[Any] = []
        self.outs: list[Value] = []

    @property
    def out(self) -> Value:
        return self.outs[0]

    @property
    def data(self) -> list[Value]:
        return [arg for arg in self.args if isinstance(arg, Value) and arg.is_data]


class Weights:
    """The tensors of a copied module by name, and the values that a run gives them."""

    def __init__(self, module: nn.Module) -> None:
        self.parameters = dict(module.named_parameters())
        self.buffers = {name: value for name, value in loose_tensors(module) if value.numel()}
        self.tensors: dict[str, Tensor] = {**self.parameters, **self.buffers}
        self.names: dict[int, str] = {}
        for name, value in reversed(self.tensors.items()):
            self.names[value.untyped_storage()._cdata] = name
        self.carried: set[str] = {name for name, value in self.buffers.items() if _is_constant(value)}
        """Buffers that are redrawn with the parameters: those that were found to be weights."""
        self.factors: dict[str, float] = {}
        """By which random values of some weights are multiplied."""
        self.exact: dict[str, Tensor] = {}
        """Float64 values of tables that the module holds rounded."""

    def name_of(self, tensor: Tensor) -> str | None:
        return self.names.get(tensor.untyped_storage()._cdata)

    def value(self, tensor: Tensor, seed: int | None) -> Tensor:
        """A tensor of the module, or a view of one, in float64: with its own values, or those drawn from a seed."""
        name = self.name_of(tensor)
        if name is None or not (tensor.is_floating_point() or tensor.is_complex()):
            return tensor.to(NARROW.get(tensor.dtype, tensor.dtype))
        if name in self.exact:
            return _same_view(self.exact[name], self.tensors[name], tensor)
        if seed is None or (name in self.buffers and name not in self.carried):
            return tensor.to(NARROW.get(tensor.dtype, tensor.dtype))
        values = drawn(name, self.tensors[name], seed)
        if name in self.factors:
            values *= self.factors[name]  # in place: the table of a large vocabulary fits once
        return _same_view(values, self.tensors[name], tensor)


def drawn(name: str, like: Tensor, seed: int) -> Tensor:
    """Random values in float64 for a weight, which its own float type holds exactly."""
    generator = torch.Generator().manual_seed(zlib.crc32(f"{seed} {name}".encode()))
    n = like.numel()
    values = torch.empty(min(n, PERIOD), dtype=torch.float32).normal_(generator=generator)
    if like.ndim >= MATRIX:
        values /= max(like.shape[-2:]) ** 0.5
    elif n == 1:
        values = 0.5 + 0.5 * values.abs().clamp(max=1)
    else:
        values = values.sign() * (0.5 + 0.3 * values.abs())
    block = values.to(like.dtype).double()
    if n <= PERIOD:
        return block.reshape(like.shape)
    result = torch.empty(n, dtype=torch.float64)
    for start in range(0, n, PERIOD):
        result[start : start + PERIOD] = block[: n - start]
    return result.reshape(like.shape)


def _same_view(base: Tensor, whole: Tensor, view: Tensor) -> Tensor:
    """The part of `base`, which has the shape of `whole`, that `view` is of `whole`."""
    if base.stride() != whole.stride():
        base = torch.empty_strided(whole.shape, whole.stride(), dtype=base.dtype).copy_(base)
    return base.as_strided(view.shape, view.stride(), view.storage_offset() - whole.storage_offset())


def _is_constant(value: Tensor) -> bool:
    """Whether all entries of a buffer are one number, as of a weight before training; a single number is none."""
    return value.is_floating_point() and value.numel() > 1 and bool((value == value.flatten()[0]).all())


class Recorder(TorchDispatchMode):
    """Runs every operation in float64, and keeps those on values that depend on the tokens.

    Args:
        seed: of random weights; None: the module's own.
        keep: which events to keep, by their index; None: none.
        last: the event after which to stop; `AT_EMBEDDING`: as the tokens are looked up.
        noise: where given, what an embedding of the tokens returns is replaced by noise.
    """

    def __init__(
        self,
        weights: Weights,
        own_type: torch.dtype,
        seed: int | None = None,
        keep: Callable[[int], bool] | None = None,
        last: int | None = None,
        noise: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.weights, self.own_type, self.seed = weights, own_type, seed
        self.keep, self.last, self.noise = keep, last, noise
        self.path = [""]
        self.events: list[Event] = []
        self.used: set[str] = set()
        self.scalars: set[float] = set()
        self.count = 0
        self._data: dict[int, Tensor] = {}
        self._versions: dict[int, int] = {}
        self._held: dict[int, list[tuple[list[Any], int]]] = {}

    def mark(self, tokens: Tensor) -> None:
        """Count a tensor as data: what is computed from it depends on the tokens."""
        if self.keep is None:
            return
        self._data[tokens.untyped_storage()._cdata] = tokens
        self.tokens = tokens

    def is_data(self, tensor: Tensor) -> bool:
        return tensor.untyped_storage()._cdata in self._data

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        leaves, spec = tree_flatten((args, kwargs or {}))
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        data = [tensor for tensor in tensors if self.is_data(tensor)]
        written = args[0] if func._schema.is_mutable and args and isinstance(args[0], Tensor) else None
        before = None
        if written is not None and not func.is_view:
            if self.weights.name_of(written) in self.weights.parameters:
                raise OwnWeightWritten(self.weights.name_of(written))
            before = self._before_write(written, bool(data))
        for tensor in tensors:
            self.used.add(self.weights.name_of(tensor) or "")
        if func.is_view and not any(tensor.is_complex() for tensor in tensors):  # a view of a weight stays one
            out = func(*args, **(kwargs or {}))
        else:
            if func is torch.ops.aten.embedding.default and self.seed is None:
                leaves_wide = leaves  # only the rows that are looked up are converted
            else:
                leaves_wide = [self._wide(leaf, written) for leaf in leaves]
            wide_args, wide_kwargs = tree_unflatten(leaves_wide, spec)
            out = func(*wide_args, **wide_kwargs)
            out = out if written is not None else tree_map(_widened, out)
        self._collect_scalars(func, [self._own_eps(leaf) for leaf in leaves])
        if data or (written is not None and self.is_data(written)):
            out = self._noted(func, leaves, out, before)
        return out

    def _collect_scalars(self, func: Any, leaves: list[Any]) -> None:
        """Keep the numbers of an operation: epsilons, caps and scales are among them."""
        scales = func._schema.name in ("aten::mul", "aten::div")
        for leaf in leaves:
            if isinstance(leaf, Tensor) and leaf.ndim == 0 and leaf.is_floating_point() and not self.is_data(leaf):
                leaf = float(self.weights.value(leaf, self.seed))
            if (type(leaf) is float or (type(leaf) is int and scales)) and leaf and math.isfinite(leaf):
                self.scalars.add(abs(leaf))

    def _wide(self, leaf: Any, written: Tensor | None) -> Any:
        if isinstance(leaf, torch.dtype):
            return NARROW.get(leaf, leaf)
        if leaf is written or not isinstance(leaf, Tensor):
            return self._own_eps(leaf)
        return self.weights.value(leaf, self.seed)

    def _own_eps(self, leaf: Any) -> Any:
        """Without an epsilon, norms take the precision of the float type: that of the module, not of this run."""
        return torch.finfo(self.own_type).eps if type(leaf) is float and leaf == EPS64 else leaf

    def _noted(self, func: Any, leaves: list[Any], out: Any, before: Value | None) -> Any:
        index, self.count = self.count, self.count + 1
        op = func._schema.name.partition("::")[2].rstrip("_")
        outs = [value for value in tree_flatten(out)[0] if isinstance(value, Tensor)]
        embeds = self.noise is not None and self._embeds(op, leaves, outs)
        if embeds:
            out = torch.empty_like(outs[0]).normal_(generator=self.noise) * 0.3
            outs = [out]
        if self.keep is not None and self.keep(index):
            event = Event(index, op, self.path[-1])
            for leaf in leaves:
                event.args.append(self._value(leaf, event.args) if isinstance(leaf, Tensor) else leaf)
            if before is not None:
                event.args[0] = before
            for value in outs:
                self._data[value.untyped_storage()._cdata] = value
                event.outs.append(self._value(value, event.outs))
            self.events.append(event)
        for value in outs:
            self._data[value.untyped_storage()._cdata] = value
        if self.last == index or (self.last == AT_EMBEDDING and embeds):
            raise Stop
        return out

    def _embeds(self, op: str, leaves: list[Any], outs: list[Tensor]) -> bool:
        """Whether an operation looks up rows of a weight by the tokens, or multiplies it with one-hot rows of them."""
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        data = [tensor for tensor in tensors if self.is_data(tensor)]
        if len(data) != 1 or len(tensors) < 2 or not outs or not outs[0].is_floating_point():
            return False
        if op in EMBEDDINGS:
            return data[0].numel() == self.tokens.numel()
        return op in ("mm", "addmm", "bmm") and is_one_hot(data[0], self.tokens)

    def _value(self, tensor: Tensor, holder: list[Any]) -> Value:
        key = tensor.untyped_storage()._cdata
        self._held.setdefault(key, []).append((holder, len(holder)))
        return Value(tensor, (key, self._versions.get(key, 0)), self.is_data(tensor), self._read)

    def _read(self, tensor: Tensor) -> Tensor:
        return self.weights.value(tensor, self.seed)

    def leading_to(self, out: Tensor) -> tuple[list[Event], set[str]]:
        """The events that a value depends on, and the names of the weights that only other events read."""
        key = out.untyped_storage()._cdata
        wanted, kept = {(key, self._versions.get(key, 0))}, list[Event]()
        names: tuple[set[str | None], set[str | None]] = set(), set()
        for event in reversed(self.events):
            values = [arg for arg in event.args if isinstance(arg, Value)]
            is_wanted = any(value.place in wanted for value in event.outs)
            names[is_wanted].update(self.weights.name_of(value.raw) for value in values if not value.is_data)
            if is_wanted:
                wanted |= {value.place for value in values if value.is_data}
                kept.append(event)
        return kept[::-1], {name for name in names[False] - names[True] if name is not None}

    def _before_write(self, written: Tensor, from_data: bool) -> Value:
        """Keep what events hold of a tensor that is about to be overwritten, and its value."""
        key = written.untyped_storage()._cdata
        for holder, position in self._held.pop(key, []):
            holder[position].raw = holder[position].raw.clone()
        before = Value(written, (key, self._versions.get(key, 0)), self.is_data(written), self._read)
        before.raw = written.clone()
        self._versions[key] = self._versions.get(key, 0) + 1
        if from_data:
            self._data[key] = written
        return before


EPS64 = torch.finfo(torch.float64).eps


def is_one_hot(x: Tensor, tokens: Tensor) -> bool:
    """Whether the rows of a tensor are 1 at a token and 0 elsewhere."""
    for rows in (x, x.transpose(-1, -2)):
        flat = rows.reshape(-1, rows.shape[-1])
        if flat.shape[0] == tokens.numel() and bool(((flat == 0) | (flat == 1)).all() and (flat.sum(1) == 1).all()):
            return True
    return False


def _widened(out: Any) -> Any:
    return out.to(NARROW[out.dtype]) if isinstance(out, Tensor) and out.dtype in NARROW else out


@contextmanager
def recording(module: nn.Module, recorder: Recorder) -> Iterator[None]:
    """Run the body with a recorder that knows which submodule computes, and without fused kernels that hide steps."""
    handles = []
    for name, inner in module.named_modules() if recorder.keep is not None else ():
        handles.append(inner.register_forward_pre_hook(partial(_enter, recorder, name)))
        handles.append(inner.register_forward_hook(partial(_leave, recorder), always_call=True))
    backend: Any = torch.backends.mha
    fast = backend.get_fastpath_enabled()
    backend.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH), recorder:
            yield
    except Stop:
        pass
    finally:
        backend.set_fastpath_enabled(fast)
        for handle in handles:
            handle.remove()


def _enter(recorder: Recorder, name: str, *_: Any) -> None:
    recorder.path.append(name)


def _leave(recorder: Recorder, *_: Any) -> None:
    if len(recorder.path) > 1:  # a module that was left by an exception is left twice
        recorder.path.pop()
