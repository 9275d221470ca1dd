"""Edits: what replaces an activation while a model runs. Frozen values; the model itself is never changed.

    subject.run(tokens, edits=[Zero(("z", 0), head=0), Patch(("resid_mid", 1), clean_value, pos=7)])

Every edit names a site and may be limited to positions, keys, heads or units of it; without a limit it covers the site.
Edits at one site compose in the order given. Which one to use:

- *Does the model need this part?* `Zero` is the simplest ablation, but zero may be a value that the model never sees;
  `Mean` keeps what is the same on all inputs; `Resample` keeps the distribution and breaks only the dependence on the
  input.
- *Does this part carry the information?* `Patch` puts in the value from another run (activation patching); `Rotate`
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
        site: where, under any name: `("z", 0)`, `"blocks.0.attn.hook_z"`.
        pos: positions that are changed (in scores and patterns: of the query); None: all.
        key: key positions that are changed, in scores and patterns; None: all.
        head: heads that are changed; None: all.
        unit: entries of the last axis that are changed: neurons, or coordinates of a vector; None: all.
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
        """What the site would hold if the edit covered it; may broadcast against `old`."""

    def apply(self, old: Value, kind: str) -> Value:
        """`old` with the edit made. Raises EditError for a limit that the site has not, an index outside it, and a
        value of the wrong shape. A score that the causal mask hides stays hidden.
        """
        self.check(old.shape, kind)
        return self.write(old.clone(), kind)

    def write(self, value: Value, kind: str) -> Value:
        """The edit made in place: `apply` for a value that nobody else holds, at a site that was checked."""
        where = self.where(value.shape, kind)
        new = self.new(value).to(value.dtype).expand_as(value)
        if kind == "attn_scores":
            new = torch.where(value.isneginf(), value, new)
        value[where] = new[where].to(value.device)
        return value

    def where(self, shape: Sequence[int], kind: str) -> tuple[slice | Int[Tensor, "..."], ...]:
        """The index of what the edit covers at a site of this shape; lists of indices mean all their combinations."""
        axes = KINDS[kind].axes
        where: list[slice | Int[Tensor, "..."]] = [slice(None)] * len(shape)
        lists: dict[int, tuple[int, ...]] = {}
        for limit, names in self.LIMITS.items():
            chosen = getattr(self, limit)
            if chosen is None:
                continue
            axis = next((axes.index(name) for name in names if name in axes), None)
            if axis is None:
                raise EditError(f"{self._said()}: the site has no axis for {limit}={chosen}; its axes are {axes}")
            size = shape[axis]
            outside = [i for i in ((chosen,) if isinstance(chosen, int) else chosen) if not -size <= i < size]
            if outside:
                raise EditError(f"{self._said()}: {limit} {outside[0]} is outside the {size} that the site has")
            if isinstance(chosen, int):
                where[axis] = slice(chosen % size, chosen % size + 1)
            else:
                lists[axis] = chosen
        for i, (axis, indices) in enumerate(lists.items()):
            where[axis] = torch.tensor(indices).view(-1, *[1] * (len(lists) - 1 - i))
        return tuple(where)

    def check(self, shape: Sequence[int], kind: str) -> None:
        """Raises what `apply` would raise at a site of this shape, without a value."""
        self.where(shape, kind)

    def _fit(self, new: Sequence[int], old: Sequence[int]) -> None:
        fits = len(new) <= len(old) and all(n in (1, o) for n, o in zip(reversed(new), reversed(old), strict=False))
        if not fits:
            raise EditError(f"{self._said()}: a value of shape {tuple(new)} does not fit {tuple(old)}")

    def _said(self) -> str:
        return f"{type(self).__name__} at {self.site}"


@dataclass(frozen=True, eq=False)
class Zero(Edit):
    """Zero ablation: the activation becomes zero.

    It needs no reference inputs, so it is the quickest way to ask whether a part matters. Zero is often a value that
    the model never computes (a head's output has a mean; a pattern of zeros attends to nothing), and what is lost then
    says as much about that as about the part: where it decides a claim, compare `Mean` and `Resample`.

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

    Run the model on a second input, record a site, and put the value in: if the answer changes to that of the second
    input, what tells the two inputs apart passes through this site. With a value of your own it is the general edit:
    the others are cases of it whose value is computed.

    Args:
        site: where, as for every edit; so are `pos`, `key`, `head`, `unit`.
        value: broadcasts against the site's activation, [batch pos ...] or [d_model]; only what the limits cover is
        used,
            so a value recorded over all positions needs no cutting.
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
        """What has to fit the site."""
        return tuple(self.value.shape)


@dataclass(frozen=True, eq=False)
class Mean(Patch):
    """Mean ablation: the mean over reference inputs, position by position.

    What the part does on every input alike stays; what depends on the input is gone. It stays closer to what the model
    computes than `Zero`, but a mean of many different activations may itself be one that never occurs: `Resample` does
    not have this fault.

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

    Every value put in is one that the model computes, so nothing leaves its distribution; only the dependence on the
    input is broken. That makes it the strictest of the three ablations, and a noisy one: use many inputs. An input may
    draw itself; the lens `ablate` draws so that none does.

    Args:
        site: where, as for every edit; so are `pos`, `key`, `head`, `unit`.
        value: the site's activation on as many inputs as the run has [batch pos ...].
        seed: of the order in which its rows are put in.
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

    What is there stays, so the model goes on computing with it: use this to test whether a direction means what you
    think, by pushing along it and watching the logits. `scale` -1 takes a known contribution out.

    Args:
        site: where, as for every edit; so are `pos`, `key`, `head`, `unit`.
        value: what is added, [d_model] or anything that broadcasts against the activation.
        scale: how many times.

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
    """Interchange within a subspace: there the component of another run's activation, elsewhere what was there.

    `Patch` exchanges whole activations; if a variable of an algorithm is spread over several neurons, or shares them
    with others, only a rotation tells it apart. If the answer changes as the variable says, the subspace holds it.

    Args:
        site: where, as for every edit; so are `pos`, `key`, `head`, `unit`.
        value: the other run's activation [batch pos d_model]; broadcasts.
        basis: the subspace, by orthonormal columns [d_model rank].
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
            raise EditError(f"{self._said()}: a basis of {len(self.basis)} rows does not fit {shape[-1]} units")


def some(edits: Sequence[Edit]) -> Sequence[Edit]:
    """The edits. Raises EditError where there are none, which would leave nothing to run."""
    if not edits:
        raise EditError("no edits: run_each makes one run for each edit, so give one or more (run makes one without)")
    return edits


class Editor(Recorder):
    """A listener that makes edits, and keeps what then passes at some sites."""

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
