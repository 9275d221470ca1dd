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
from dataclasses import KW_ONLY, dataclass, replace
from typing import Any, ClassVar, SupportsIndex

import numpy as np
import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from algoscope.core.arguments import checked_arguments
from algoscope.core.errors import EditError
from algoscope.core.sites import KINDS, Key, Site
from algoscope.networks.taps import precise
from algoscope.subjects._coverage import LIMITS, Coverage
from algoscope.subjects.cache import Recorder

Indices = SupportsIndex | Sequence[SupportsIndex] | Shaped[Tensor, "..."] | np.ndarray | slice | None
Value = Float[Tensor, "..."]
Given = Shaped[Tensor, "..."] | np.ndarray | Sequence[Any] | float


@dataclass(frozen=True, eq=False)
class Edit(ABC):
    """One change at one site. The limits are indices, tuples of them or slices; negative ones count from the end.

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

    LIMITS: ClassVar[dict[str, tuple[str, ...]]] = LIMITS

    @abstractmethod
    def new(self, old: Value, coverage: Coverage) -> Value:
        """What the covered entries become; may broadcast against `old`, what they are."""

    def apply(self, old: Value, kind: str) -> Value:
        """`old` with the edit applied. Raises EditError for a limit without a matching axis, an index out of range, and
        a value of the wrong shape. Scores masked by the causal mask stay masked.
        """
        self.check(old.shape, kind)
        return self.write(old.clone(), kind)

    def write(self, value: Value, kind: str) -> Value:
        """Apply the edit in place: for a value with no other references."""
        coverage = self.coverage(value.shape, kind)
        old = value[coverage.where]
        new = self.new(old, coverage).to(value)
        if kind == "attn_scores":
            new = torch.where(old.isneginf(), old, new)
        value[coverage.where] = new
        return value

    def coverage(self, shape: Sequence[int], kind: str) -> Coverage:
        """What the edit covers of a site of this shape. Raises EditError for limits that the site does not have."""
        asked, coverage = self.__dict__.get("_coverage", (None, None))
        if coverage is None or asked != (kind, *shape):  # a sweep asks for the same three times
            limits = {limit: chosen for limit in LIMITS if (chosen := getattr(self, limit)) is not None}
            coverage = Coverage.of(self.label, shape, KINDS[kind].axes, limits)
            self.__dict__["_coverage"] = (kind, *shape), coverage
        return coverage

    def check(self, shape: Sequence[int], kind: str) -> None:
        """Raises the errors of `apply` for a site of this shape."""
        self.coverage(shape, kind)

    @property
    def label(self) -> str:
        """The kind of edit and its site, as `Zero at ('z', 0)`."""
        return f"{type(self).__name__} at {self.site}"


@checked_arguments
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

    def new(self, old: Value, coverage: Coverage) -> Value:
        return torch.zeros_like(old)


@checked_arguments
@dataclass(frozen=True, eq=False, kw_only=True)
class Patch(Edit):
    """Activation patching: the site's activation from another run, or any other value.

    Run the model on a second input, record a site, and patch the recorded value: if the answer changes to that of the
    second input, the site carries the information in which the inputs differ. Any other value may be given too; the
    other edits are special cases with a computed value.

    Args:
        site: where, as for every edit; so are `pos`, `key`, `head`, `unit`.
        value: the new activation [batch pos ...], of which only entries within the limits are used, so that a value
            recorded at all positions can be given unchanged; or that of these entries alone, as `v[:, 3]` for pos=3
            and `v[:, [1, 3]]` for pos=(1, 3); or a vector along the last axis, or a number.
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

    value: Given

    def __post_init__(self) -> None:
        object.__setattr__(self, "value", self._tensor("value", self.value))

    def new(self, old: Value, coverage: Coverage) -> Value:
        return coverage.fitted(self.given).to(old.device)

    def check(self, shape: Sequence[int], kind: str) -> None:
        self.coverage(shape, kind).fitted(self.given)

    @property
    def given(self) -> Value:
        """The value that must fit what the edit covers."""
        assert isinstance(self.value, Tensor)
        return self.value

    def _tensor(self, name: str, value: Any) -> Tensor:
        """Raises EditError for what is no array of numbers."""
        if not isinstance(value, Tensor):
            array = np.array(value)
            if array.dtype.kind not in "fiub":
                raise EditError(f"{self.label}: {name} must be a tensor or a number, not {type(value).__name__}")
            value = torch.from_numpy(array)
        if value.is_complex() or value.is_meta:
            what = "complex" if value.is_complex() else "on the meta device, where tensors have no numbers"
            raise EditError(f"{self.label}: {name} is {what}")
        return value


class _OverInputs(Patch):
    """A patch whose value is computed from those of several inputs."""

    def check(self, shape: Sequence[int], kind: str) -> None:
        n_axes = len(shape) - len(self.coverage(shape, kind).single)
        if not isinstance(self.value, Tensor) or self.value.ndim < max(1, n_axes):
            raise EditError(
                f"{self.label}: give a value with an axis for inputs, [{' '.join(KINDS[kind].axes)}]; what needs "
                "none goes into Patch"
            )
        super().check(shape, kind)


@checked_arguments
@dataclass(frozen=True, eq=False)
class Mean(_OverInputs):
    """Mean ablation: the mean over reference inputs, position by position.

    It keeps the constant part of the activation and removes what depends on the input. It is closer to the distribution
    than `Zero`, but the mean of many different activations may itself never occur; `Resample` avoids this.

    Args:
        site: where, as for every edit; so are `pos`, `key`, `head`, `unit`.
        value: the site's activation on the reference inputs [batch pos ...]; these need not be the inputs of the run.

    Example:
        >>> import algoscope as ag
        >>> model = ag.open("planted:carry-adder")
        >>> tokens = model.task.edge_inputs()[:, :-1]
        >>> logits, cache = model.run(tokens, record=[("z", 0)])
        >>> ablated, _ = model.run(tokens, edits=[ag.Mean(("z", 0), value=cache["z", 0], head=0)])
        >>> bool((ablated != logits).any())
        True
    """

    @property
    def given(self) -> Value:
        return super().given.to(precise(super().given.dtype)).mean(dim=0, keepdim=True)


@checked_arguments
@dataclass(frozen=True, eq=False, kw_only=True)
class Resample(_OverInputs):
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
        >>> tokens = model.task.edge_inputs()[:, :-1]
        >>> logits, cache = model.run(tokens, record=[("z", 0)])
        >>> ablated, _ = model.run(tokens, edits=[ag.Resample(("z", 0), value=cache["z", 0], seed=1)])
        >>> ablated.shape == logits.shape
        True
    """

    seed: int = 0

    @property
    def given(self) -> Value:
        value = super().given
        order = torch.randperm(len(value), generator=torch.Generator().manual_seed(self.seed))
        return value[order.to(value.device)]


@checked_arguments
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

    def new(self, old: Value, coverage: Coverage) -> Value:
        return old + self.scale * super().new(old, coverage)


@checked_arguments
@dataclass(frozen=True, eq=False, kw_only=True)
class Rotate(Patch):
    """Interchange within a subspace: the component in the subspace comes from another run, the rest is kept.

    `Patch` replaces whole activations. A variable of an algorithm that is distributed over neurons, or shares them with
    other variables, needs a subspace. If the answer changes as the variable predicts, the subspace represents it.

    Args:
        site: where, as for every edit; so are `pos`, `key`, `head`, `unit`.
        value: the other run's activation [batch pos d_model]; broadcasts.
        basis: orthonormal columns that span the subspace [d_model rank], or one unit vector.
    Raises:
        EditError: when run, for a basis or a value that does not fit the site.
    Source:
        distributed interchange interventions, Geiger et al., arXiv 2303.02536

    Example:
        >>> import algoscope as ag, torch
        >>> model = ag.open("planted:carry-adder")
        >>> tokens = model.task.edge_inputs()[:, :-1]
        >>> _, cache = model.run(tokens.flip(0), record=[("resid_mid", 0)])
        >>> basis = torch.eye(model.cfg.d_model)[:, :2]  # the first two coordinates
        >>> edit = ag.Rotate(("resid_mid", 0), value=cache["resid_mid", 0], basis=basis)
        >>> model.run(tokens, edits=[edit])[0].shape
        torch.Size([6, 12, 14])
    """

    basis: Given

    def __post_init__(self) -> None:
        super().__post_init__()
        basis = self._tensor("basis", self.basis)
        object.__setattr__(self, "basis", basis[:, None] if basis.ndim == 1 else basis)

    def write(self, value: Value, kind: str) -> Value:
        if self.unit is None and self.key is None:
            return super().write(value, kind)
        where = self.coverage(value.shape, kind).where
        value[where] = self._of_all_units.write(value.clone(), kind)[where]
        return value

    @property
    def _of_all_units(self) -> "Rotate":
        """The edit of every entry of the last axis, which a rotation needs."""
        return replace(self, unit=None, key=None)

    def new(self, old: Value, coverage: Coverage) -> Value:
        wide = precise(old.dtype)
        before, after, basis = (x.to(old.device, wide) for x in (old, super().new(old, coverage), self._columns))
        return before + (after - before) @ basis @ basis.mT

    def check(self, shape: Sequence[int], kind: str) -> None:
        self.coverage(shape, kind)
        self._of_all_units.coverage(shape, kind).fitted(self.given)
        basis = self._columns.double()
        if basis.ndim != 2 or len(basis) != shape[-1]:
            raise EditError(
                f"{self.label}: a basis of {len(basis)} rows does not fit {shape[-1]} units; it is [units rank]"
            )
        if not torch.allclose(basis.mT @ basis, torch.eye(basis.shape[1]).to(basis), atol=0.01):
            raise EditError(
                f"{self.label}: the columns of the basis are not orthonormal; torch.linalg.qr makes them so"
            )

    @property
    def _columns(self) -> Float[Tensor, "..."]:
        assert isinstance(self.basis, Tensor)
        return self.basis


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
        if kind == "embed" and torch.is_grad_enabled():
            value = value.detach().requires_grad_()  # the weights take no gradients, so the graph begins here
        for site, edit in self.edits:
            if site == Site(kind, layer):
                value = edit.apply(value, kind)
        return super().__call__(kind, layer, value)
