"""Edits: interventions on activations during a run. They are frozen values; the model itself is never changed.

    subject.run(tokens, edits=[Zero(("z", 0), head=0), Patch(("resid_mid", 1), clean_value, pos=7)])

Every edit names a site, and may be limited to some positions, keys, heads or units. Edits at one site compose in the
given order. Which one to use:

- *Does the model need this component?* `Zero` is the simplest ablation, but zero may be out of distribution; `Mean`
  keeps what is constant over inputs; `Resample` keeps the distribution and removes only the dependence on the input.
- *Does this site carry the information?* `Patch` inserts the activation of another run (activation patching); `Rotate`
  does so within a subspace only.
- *Does this direction steer the model?* `Add` adds it.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from algoscope.core.errors import EditError
from algoscope.core.sites import KINDS, Key, Site
from algoscope.subjects.cache import Recorder

Indices = int | tuple[int, ...] | None
Value = Float[Tensor, "..."]


@dataclass(frozen=True, eq=False)
class Edit(ABC):
    """One change at one site. The limits are indices or tuples of them; negative ones count from the end.

    Args:
        site: a site, under any of its names: `("z", 0)`, `"blocks.0.attn.hook_z"`.
        pos: positions to change (query positions in scores and patterns); None: all.
        key: key positions to change, in scores and patterns; None: all.
        head: heads to change; None: all.
        unit: entries of the last axis to change: neurons, or coordinates of a vector; None: all.
    """

    site: Key
    _: KW_ONLY
    pos: Indices = None
    key: Indices = None
    head: Indices = None
    unit: Indices = None

    LIMITS: ClassVar[dict[str, tuple[str, ...]]] = {
        "pos": ("pos", "query"),
        "key": ("key",),
        "head": ("head", "kv_head"),
        "unit": ("d_model", "d_mlp", "d_head"),
    }

    @abstractmethod
    def new(self, old: Value) -> Value:
        """The new value of the whole site; may broadcast against `old`."""

    def apply(self, old: Value, kind: str) -> Value:
        """`old` with the edit applied. Raises EditError for a limit without a matching axis, an index out of range, and
        a value of the wrong shape. Scores masked by the causal mask stay masked.
        """
        self.check(old.shape, kind)
        return self.write(old.clone(), kind)

    def write(self, value: Value, kind: str) -> Value:
        """Apply the edit in place, without checks: for a value with no other references."""
        where = self.where(value.shape, kind)
        new = self.new(value).to(value.dtype).expand_as(value)
        if kind == "attn_scores":
            new = torch.where(value.isneginf(), value, new)
        value[where] = new[where].to(value.device)
        return value

    def where(self, shape: Sequence[int], kind: str) -> tuple[slice | Int[Tensor, "..."], ...]:
        """The index of the edited entries at a site of this shape; lists of indices select their outer product."""
        axes = KINDS[kind].axes
        where: list[slice | Int[Tensor, "..."]] = [slice(None)] * len(shape)
        lists: dict[int, tuple[int, ...]] = {}
        for limit, names in self.LIMITS.items():
            chosen = getattr(self, limit)
            if chosen is None:
                continue
            axis = next((axes.index(name) for name in names if name in axes), None)
            if axis is None:
                raise EditError(f"{self._label()}: the site has no axis for {limit}={chosen}; its axes are {axes}")
            size = shape[axis]
            outside = [i for i in ((chosen,) if isinstance(chosen, int) else chosen) if not -size <= i < size]
            if outside:
                raise EditError(f"{self._label()}: {limit} {outside[0]} is out of range, the site has {size}")
            if isinstance(chosen, int):
                where[axis] = slice(chosen % size, chosen % size + 1)
            else:
                lists[axis] = chosen
        for i, (axis, indices) in enumerate(lists.items()):
            where[axis] = torch.tensor(indices).view(-1, *[1] * (len(lists) - 1 - i))
        return tuple(where)

    def check(self, shape: Sequence[int], kind: str) -> None:
        """Raises the errors of `apply` for a site of this shape."""
        self.where(shape, kind)

    def _fit(self, new: Sequence[int], old: Sequence[int]) -> None:
        fits = len(new) <= len(old) and all(n in (1, o) for n, o in zip(reversed(new), reversed(old), strict=False))
        if not fits:
            raise EditError(f"{self._label()}: a value of shape {tuple(new)} does not fit {tuple(old)}")

    def _label(self) -> str:
        return f"{type(self).__name__} at {self.site}"


@dataclass(frozen=True, eq=False)
class Zero(Edit):
    """Zero ablation: the activation becomes zero.

    It needs no reference inputs, so it is the quickest test of whether a component matters. But zero is often out of
    distribution (a head's output has a nonzero mean; a pattern of zeros attends to nothing), and then the effect is
    partly that of the unusual value. Where a claim depends on it, compare `Mean` and `Resample`.

    Args:
        site: where, as for every edit; so are `pos`, `key`, `head`, `unit`.

    Example:
        >>> import algoscope as ag
        >>> model = ag.open("planted:induction")
        >>> logits, _ = model.run(model.to_tokens("abcab"), edits=[ag.Zero(("z", 1), head=0)])
        >>> float(logits[0, -1].max() - logits[0, -1].min())  # without the induction head nothing predicts c
        0.0
    """

    def new(self, old: Value) -> Value:
        return torch.zeros_like(old)


@dataclass(frozen=True, eq=False, kw_only=True)
class Patch(Edit):
    """Activation patching: the site's activation from another run, or any other value.

    Run the model on a second input, record a site, and patch the recorded value: if the answer changes to that of the
    second input, the site carries the information in which the inputs differ. Any other value may be given too; the
    other edits are special cases with a computed value.

    Args:
        site: where, as for every edit; so are `pos`, `key`, `head`, `unit`.
        value: the new activation [batch pos ...] or [d_model], which broadcasts; only entries within the limits are
            used, so a value recorded at all positions can be given unchanged.
    Raises:
        EditError: when run, for a value that does not fit the site.
    Source:
        Meng et al., arXiv 2202.05262; Zhang and Nanda, arXiv 2309.16042 (how to read it)

    Example:
        >>> import algoscope as ag
        >>> model = ag.open("planted:carry-adder")
        >>> clean, corrupt = (model.lay_out(text).tokens for text in ("123+456", "123+457"))
        >>> _, cache = model.run(corrupt, record=["embed"])
        >>> logits, _ = model.run(clean, edits=[ag.Patch("embed", value=cache["embed"], pos=6)])
        >>> model.to_string(logits[0, 7:8].argmax(-1))  # the units digit is now that of 123 + 457
        '0'
    """

    value: Value

    def new(self, old: Value) -> Value:
        return self.value

    def check(self, shape: Sequence[int], kind: str) -> None:
        super().check(shape, kind)
        self._fit(self._shape, shape)

    @property
    def _shape(self) -> tuple[int, ...]:
        """The shape that must fit the site."""
        return tuple(self.value.shape)


@dataclass(frozen=True, eq=False)
class Mean(Patch):
    """Mean ablation: the mean over reference inputs, position by position.

    It keeps the constant part of the activation and removes what depends on the input. It is closer to the distribution
    than `Zero`, but the mean of many different activations may itself never occur; `Resample` avoids this.

    Args:
        site: where, as for every edit; so are `pos`, `key`, `head`, `unit`.
        value: the site's activation on the reference inputs [batch pos ...]; these need not be the inputs of the run.

    Example:
        >>> import algoscope as ag
        >>> model = ag.open("planted:carry-adder")
        >>> tokens = model.task.edge_cases()[:, :-1]
        >>> logits, cache = model.run(tokens, record=[("z", 0)])
        >>> ablated, _ = model.run(tokens, edits=[ag.Mean(("z", 0), value=cache["z", 0], head=0)])
        >>> bool((ablated != logits).any())
        True
    """

    def new(self, old: Value) -> Value:
        return self.value.mean(dim=0, keepdim=True)

    @property
    def _shape(self) -> tuple[int, ...]:
        return (1, *self.value.shape[1:])


@dataclass(frozen=True, eq=False, kw_only=True)
class Resample(Patch):
    """Resample ablation: each input gets the activation of another one, drawn at random.

    Every replacement is an activation that the model computes, so it stays in distribution; only the dependence on the
    input is removed. This makes it the strictest of the three ablations, but a noisy one: use many inputs. An input may
    get its own activation; the lens `ablate` avoids this.

    Args:
        site: where, as for every edit; so are `pos`, `key`, `head`, `unit`.
        value: the site's activation on as many inputs as the run has [batch pos ...].
        seed: of the random order of its rows.
    Source:
        Chan et al., Causal Scrubbing, 2022

    Example:
        >>> import algoscope as ag
        >>> model = ag.open("planted:carry-adder")
        >>> tokens = model.task.edge_cases()[:, :-1]
        >>> logits, cache = model.run(tokens, record=[("z", 0)])
        >>> ablated, _ = model.run(tokens, edits=[ag.Resample(("z", 0), value=cache["z", 0], seed=1)])
        >>> ablated.shape == logits.shape
        True
    """

    seed: int = 0

    def new(self, old: Value) -> Value:
        order = torch.randperm(len(self.value), generator=torch.Generator().manual_seed(self.seed))
        return self.value[order.to(old.device)]


@dataclass(frozen=True, eq=False, kw_only=True)
class Add(Patch):
    """Steering: a direction times a scale, added to the activation.

    The original activation is kept. Use this to test the meaning of a direction: add it and observe the logits. With
    `scale` -1 it subtracts a known contribution.

    Args:
        site: where, as for every edit; so are `pos`, `key`, `head`, `unit`.
        value: the direction, [d_model] or anything that broadcasts against the activation.
        scale: its factor.

    Example:
        >>> import algoscope as ag
        >>> model = ag.open("planted:induction")
        >>> tokens, direction = model.to_tokens("abc"), model.model.W_U[4]  # the unembedding of e
        >>> logits, _ = model.run(tokens, edits=[ag.Add(("resid_post", -1), value=direction, scale=100.0)])
        >>> model.to_string(logits[0].argmax(-1))
        'eee'
    """

    scale: float = 1.0

    def new(self, old: Value) -> Value:
        return old + self.scale * self.value


@dataclass(frozen=True, eq=False, kw_only=True)
class Rotate(Patch):
    """Interchange within a subspace: the component in the subspace comes from another run, the rest is kept.

    `Patch` replaces whole activations. A variable of an algorithm that is distributed over neurons, or shares them with
    other variables, needs a subspace. If the answer changes as the variable predicts, the subspace represents it.

    Args:
        site: where, as for every edit; so are `pos`, `key`, `head`, `unit`.
        value: the other run's activation [batch pos d_model]; broadcasts.
        basis: orthonormal columns that span the subspace [d_model rank].
    Raises:
        EditError: when run, for a basis or a value that does not fit the site.
    Source:
        distributed interchange interventions, Geiger et al., arXiv 2303.02536

    Example:
        >>> import algoscope as ag, torch
        >>> model = ag.open("planted:carry-adder")
        >>> tokens = model.task.edge_cases()[:, :-1]
        >>> _, cache = model.run(tokens.flip(0), record=[("resid_mid", 0)])
        >>> basis = torch.eye(model.cfg.d_model)[:, :2]  # the first two coordinates
        >>> edit = ag.Rotate(("resid_mid", 0), value=cache["resid_mid", 0], basis=basis)
        >>> model.run(tokens, edits=[edit])[0].shape
        torch.Size([6, 12, 14])
    """

    basis: Float[Tensor, "d_model rank"]

    def new(self, old: Value) -> Value:
        return old + (self.value - old) @ self.basis @ self.basis.mT

    def check(self, shape: Sequence[int], kind: str) -> None:
        super().check(shape, kind)
        if len(self.basis) != shape[-1]:
            raise EditError(f"{self._label()}: a basis of {len(self.basis)} rows does not fit {shape[-1]} units")


def some(edits: Sequence[Edit]) -> Sequence[Edit]:
    """The edits. Raises EditError for an empty sequence, which would give no run."""
    if not edits:
        raise EditError("no edits: run_each makes one run per edit, so give at least one (run needs none)")
    return edits


class Editor(Recorder):
    """A tap that applies edits, and records the resulting activations at some sites."""

    def __init__(self, edits: Sequence[tuple[Site, Edit]], sites: frozenset[Site] = frozenset()) -> None:
        super().__init__(sites)
        self.edits = edits
        self.kinds |= {site.kind for site, _ in edits}
        self.layers = frozenset(site.layer for site in [*sites, *(site for site, _ in edits)])

    def __call__(self, kind: str, layer: int | None, value: Tensor) -> Tensor:
        for site, edit in self.edits:
            if site == Site(kind, layer):
                value = edit.apply(value, kind)
        return super().__call__(kind, layer, value)
