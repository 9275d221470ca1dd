"""Running a model on tokens: the part of a subject that needs no tokenizer and no task."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from algoscope.config import ModelConfig
from algoscope.core.ambient import usual_torch
from algoscope.core.arguments import checked_arguments
from algoscope.core.errors import CheckpointError, DivergedError, SubjectError, VocabularyError
from algoscope.core.sites import Site, find_site
from algoscope.core.threads import right_sized
from algoscope.networks.logits_only import LogitsOnly, LogitsShape, Network
from algoscope.networks.taps import precise
from algoscope.networks.transformer import Transformer
from algoscope.subjects._arguments import (
    Keys,
    MaskLike,
    Positions,
    TokenIds,
    edits_of,
    keys_of,
    mask_of,
    positions,
    token_ids,
    vocabulary_ids,
)  # fmt: skip
from algoscope.subjects.cache import ActivationCache, Recorder
from algoscope.subjects.edits import Edit, Editor, some
from algoscope.subjects.sweep import run_each
from algoscope.tasks.base import Tokens

Edits = Edit | Iterable[Any]
WIDER = {torch.float16: "float32", torch.bfloat16: "float32", torch.float32: "float64"}


@checked_arguments
class Runner:
    """Runs a model, with recorded sites and edits. The model is never changed."""

    measured = False
    """Whether results are for measuring: in float32 where the model computes in half precision, and finite."""

    def __init__(self, name: str, model: Network) -> None:
        self.name, self._network = name, model.eval().requires_grad_(False)
        self._sizes: ModelConfig | LogitsShape = model.cfg
        self.require_finite()
        self._n_weights = sum(weight.numel() for weight in model.parameters())

    @property
    def is_black_box(self) -> bool:
        """Whether only its logits are known: then it has no config, weights or sites, and `note` says why."""
        return isinstance(self._network, LogitsOnly)

    @property
    def model(self) -> Transformer:
        """The transformer. Raises SubjectError for a black box."""
        if isinstance(self._network, LogitsOnly):
            raise self._unknown("weights", self._network)
        return self._network

    @property
    def cfg(self) -> ModelConfig:
        """The config of the transformer. Raises SubjectError for a black box."""
        return self.model.cfg

    def _unknown(self, what: str, network: LogitsOnly) -> SubjectError:
        return SubjectError(
            f"{self.name} is a black box, {network.why}: its {what} are not known, only its logits, which are enough "
            "for certify, generate, report and the lens answers"
        )

    @property
    def sites(self) -> tuple[Site, ...]:
        """The sites of this model: every activation that can be recorded or edited.

        Example:
            >>> import algoscope as ag
            >>> [site.name for site in ag.open("planted:induction").sites][:2]
            ['hook_embed', 'hook_pos_embed']
        """
        if isinstance(self._network, LogitsOnly):
            raise self._unknown("activations", self._network)
        return self._network.sites

    @property
    def dtype(self) -> torch.dtype:
        """The float type of the weights."""
        return self._weight.dtype

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return self._weight.device

    @property
    def _weight(self) -> Tensor:
        """A weight; of a black box a tensor like its logits."""
        return self._network.like if isinstance(self._network, LogitsOnly) else self._network.embed.weight

    def run(
        self,
        tokens: TokenIds,
        *,
        record: Keys = (),
        edits: Edits = (),
        at: Positions = slice(None),
        attention_mask: MaskLike = None,
        grad: bool = False,
    ) -> tuple[Float[Tensor, "batch read d_vocab"], ActivationCache]:
        """Run the model once, with edits, and return logits and recorded activations.

        With `grad` the logits and the recorded activations are parts of one graph: after `loss.backward()`, where
        `loss` is any function of them, `cache["z", 0].grad` is the gradient at that activation, after the edits there.
        The weights get no gradients.

        Args:
            tokens: token ids [batch pos], or [pos] of one input.
            record: sites to record, under any of their names; one or several.
            edits: interventions, applied in this order; one or several.
            at: positions at which logits are computed: a slice, or one position.
            attention_mask: [batch pos], false or 0 at padding: no query attends to it, and positions are counted from
                the first token that is not padding.
            grad: whether gradients can be taken; `run_each` and `generate` take none.
        Returns:
            Logits at the positions `at`, and the recorded activations after the edits.
        Raises:
            UnknownNameError: for an unknown site.
            EditError: for an edit that cannot be applied.
            VocabularyError: for tokens outside the vocabulary or the context, and for a mask that does not fit them.

        Example:
            >>> import algoscope as ag
            >>> model = ag.open("planted:induction")
            >>> logits, cache = model.run(model.to_tokens("abcab"), record=[("pattern", 1)])
            >>> cache["pattern", 1].shape  # [batch head query key]
            torch.Size([1, 2, 5, 5])
            >>> logits, cache = model.run(model.to_tokens("abcab"), record=[("z", 1)], grad=True)
            >>> logits[0, -1, 2].backward()  # of the logit of c, at each head's output
            >>> cache["z", 1].grad.shape
            torch.Size([1, 5, 2, 64])
        """
        with usual_torch(gradients=grad):
            network = self.model if grad else self._network
            ids = self._ids(tokens)
            mask, located = mask_of(attention_mask, ids), self._located(edits)
            editor = Editor(located, frozenset(find_site(key, self.sites) for key in keys_of(record)))
            with right_sized(self._operations(ids)):
                logits = network(ids, at=positions(at, ids.shape[1]), tap=editor, mask=mask)
            self._require_finite_results(ids, mask, [edit for _, edit in located], logits, editor.values)
            values = editor.values
            if not grad:  # another float type would be another value, without the gradient
                values = {site: self._result(value) for site, value in values.items()}
            return self._result(logits), ActivationCache(values, () if self.is_black_box else self.sites)

    @usual_torch()
    def run_each(
        self,
        tokens: TokenIds,
        edits: Edits,
        *,
        at: Positions = slice(None),
        among: TokenIds | int | None = None,
        reduce: Callable[[Float[Tensor, "edit batch read d_vocab"]], Tensor] | None = None,
        incremental: bool = True,
        attention_mask: MaskLike = None,
    ) -> Tensor:
        """Run the model once per edit, with that edit alone: a sweep of patches or ablations.

        Args:
            tokens: token ids [batch pos], or [pos] of one input.
            edits: one run each.
            at: positions at which logits are computed: a slice, or one position.
            among: tokens whose logits are computed; None: all.
            reduce: a function of the logits of some edits that returns what is kept [edit ...], so that the logits of
                all edits are never in memory at once.
            incremental: compute only what an edit can change; false runs the whole model for each edit, the reference
                in tests.
            attention_mask: [batch pos], false or 0 at padding, as for `run`.
        Returns:
            Logits [edit batch read d_vocab], or what `reduce` returns for them.
        Raises:
            EditError: for no edits, and for one that cannot be applied.

        Example:
            >>> import algoscope as ag
            >>> model = ag.open("planted:induction")
            >>> edits = [ag.Zero(("z", layer), head=head) for layer in range(2) for head in range(2)]
            >>> model.run_each(model.to_tokens("abcab"), edits, at=slice(-1, None)).shape
            torch.Size([4, 1, 1, 26])
        """
        ids, located = self._ids(tokens), self._located(some(edits_of(edits, Edit)))
        mask, read = mask_of(attention_mask, ids), positions(at, ids.shape[1])
        some_ids = vocabulary_ids(among, self.cfg.d_vocab, self.device)

        def kept(logits: Float[Tensor, "edit batch read d_vocab"]) -> Tensor:
            self._require_finite_results(ids, mask, [edit for _, edit in located], logits, {})
            return self._result(logits) if reduce is None else reduce(self._result(logits))

        if incremental:
            with right_sized(self._operations(ids) * len(located) / 2):
                return run_each(self.model, ids, located, read, some_ids, kept, mask)
        each = []
        for edit in located:
            with right_sized(self._operations(ids)):
                logits = self.model(ids, at=read, tap=Editor([edit]), mask=mask)[None]
            each.append(kept(logits if some_ids is None else logits[..., some_ids]))
        return torch.cat(each)

    def run_with_cache(
        self,
        tokens: TokenIds,
        names_filter: Callable[[str], bool] | Keys | None = None,
        *,
        attention_mask: MaskLike = None,
    ) -> tuple[Float[Tensor, "batch pos d_vocab"], ActivationCache]:
        """Run the model and record everything, as TransformerLens does.

        Args:
            tokens: token ids [batch pos], or [pos] of one input.
            names_filter: which sites to record: a name (`blocks.0.attn.hook_z`), several, or a function that is true of
                their full names; None: all.
            attention_mask: [batch pos], false or 0 at padding, as for `run`.
        Returns:
            Logits at every position, and the activations.

        Example:
            >>> import algoscope as ag
            >>> model = ag.open("planted:induction")
            >>> _, cache = model.run_with_cache(model.to_tokens("abcab"), lambda name: name.endswith("hook_z"))
            >>> list(cache)
            ['blocks.0.attn.hook_z', 'blocks.1.attn.hook_z']
        """
        record: Keys = [site.name for site in self.sites]
        if callable(names_filter):
            record = [site.name for site in self.sites if names_filter(site.name)]
        elif names_filter is not None:
            record = names_filter
        return self.run(tokens, record=record, attention_mask=attention_mask)

    def __call__(self, tokens: TokenIds, *, attention_mask: MaskLike = None) -> Float[Tensor, "batch pos d_vocab"]:
        """The logits at every position."""
        return self.run(tokens, attention_mask=attention_mask)[0]

    @usual_torch()
    def unembed(self, stream: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos d_vocab"]:
        """Logits of a residual stream: final norm, then unembedding, as in the logit lens.

        Example:
            >>> import algoscope as ag
            >>> model = ag.open("planted:induction")
            >>> logits, cache = model.run(model.to_tokens("abcab"), record=[("resid_post", -1)])
            >>> bool((model.unembed(cache["resid_post", -1]) == logits).all())
            True
        """
        if stream.ndim != 3 or stream.shape[-1] != self.cfg.d_model:
            raise SubjectError(
                f"{self.name} unembeds a residual stream [batch pos {self.cfg.d_model}], not {tuple(stream.shape)}"
            )
        return self._result(self.model.to_logits(stream.to(self.model.embed.weight)))

    def require_finite(self) -> None:
        """Raises CheckpointError, naming the part of the model, where a weight is not a finite number.

        It is asked when a subject is made, when a lens is given one, and when logits are not finite.
        """
        for name, weight in self._network.named_parameters():
            if weight.sum(dtype=torch.float32).isfinite() or weight.isfinite().all():
                continue
            limit = f"{str(weight.dtype).removeprefix('torch.')} ends at {torch.finfo(weight.dtype).max:,.0f}"
            small = weight.dtype == torch.float16
            raise CheckpointError(
                f"{self.name}: weights of {_part(name)} are not finite ({name}): "
                + (f"{limit}, so use bfloat16 or float32" if small else "restore them from a backup, or train again")
            )

    def _require_finite_results(
        self,
        ids: Tokens,
        mask: Tensor | None,
        edits: Sequence[Edit],
        logits: Tensor,
        values: Mapping[Site, Tensor],
    ) -> None:
        """Raises DivergedError where logits are not finite, other than by an edit; in measuring, also by an edit, and
        where a recorded activation is not finite.
        """
        bad = not _is_finite(logits) or (self.measured and not all(map(_is_finite, _unmasked(values).values())))
        if not bad or (edits and not self.measured):
            return
        self.require_finite()
        if self.is_black_box:
            raise DivergedError(f"{self.name} gives logits that are not finite for tokens of shape {list(ids.shape)}")
        kind = str(self.dtype).removeprefix("torch.")
        wider = f": use to_dtype(torch.{WIDER[self.dtype]})" if self.dtype in WIDER else ""
        if site := self._first_not_finite(ids, mask):
            raise DivergedError(f"{self.name}: the activations of {_part_of(site)} are not finite in {kind}{wider}")
        if edits:
            raise DivergedError(f"{self.name}: its logits with {edits[0].label} are not finite in {kind}{wider}")
        raise DivergedError(f"{self.name}: its logits are not finite in {kind}, although its weights are{wider}")

    def _first_not_finite(self, ids: Tokens, mask: Tensor | None) -> Site | None:
        """The site of the first activation that is not finite, where there is one."""
        recorder = Recorder(frozenset(self.sites))
        self.model(ids, mask=mask, tap=recorder)
        bad = [site for site, value in _unmasked(recorder.values).items() if not _is_finite(value)]
        return bad[0] if bad else None

    def _result(self, value: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        return value.to(precise(value.dtype)) if self.measured else value

    def token_embedding(self) -> Float[Tensor, "d_vocab d_model"]:
        """W_E, one row per token."""
        return self._result(self.model.W_E.detach())

    def position_embedding(self) -> Float[Tensor, "pos d_model"] | None:
        """W_pos, one row per position; None where position embeddings are not learned."""
        return None if self.model.W_pos is None else self._result(self.model.W_pos.detach())

    def _operations(self, tokens: Tokens) -> float:
        """Floating-point operations of one run, roughly: two for each weight and token."""
        return math.inf if self.is_black_box else 2.0 * self._n_weights * tokens.numel()

    def _located(self, edits: Any) -> list[tuple[Site, Edit]]:
        listed = edits_of(edits, Edit)
        if not listed:
            return []
        keys = [tuple(edit.site) if isinstance(edit.site, list) else edit.site for edit in listed]
        sites = {key: find_site(key, self.sites) for key in set(keys)}
        return [(sites[key], edit) for key, edit in zip(keys, listed, strict=True)]

    def _ids(self, tokens: Any) -> Tokens:
        """Token ids [batch pos] on the model's device. Raises VocabularyError for those that the model cannot read."""
        ids = token_ids(tokens, self.device)
        low, high = (int(edge) for edge in ids.aminmax()) if ids.numel() else (0, 0)
        if low < 0 or high >= self._sizes.d_vocab:
            worst = low if low < 0 else high
            raise VocabularyError(f"token {worst} is outside the {self._sizes.d_vocab} tokens of {self.name}")
        if ids.shape[1] > (longest := self._sizes.n_ctx):
            raise VocabularyError(f"{ids.shape[1]} tokens are more than the context of {self.name}: {longest}")
        return ids


def _is_finite(value: Tensor) -> bool:
    """Whether all entries are finite: their sum, or where that overflows each of them."""
    return math.isfinite(value.sum(dtype=precise(value.dtype)).item()) or bool(value.isfinite().all())


def _unmasked(values: Mapping[Site, Tensor]) -> dict[Site, Tensor]:
    """Activations without the minus infinities of a mask."""
    return {
        site: value.masked_fill(value.isneginf(), 0) if site.kind == "attn_scores" else value
        for site, value in values.items()
    }


def _part_of(site: Site) -> str:
    if site.layer is not None:
        return f"block {site.layer}"
    return "the final norm" if site.kind.startswith("ln_final") else "the embeddings"


def _part(name: str) -> str:
    """The part of a model that a weight belongs to, in words."""
    head, *rest = name.split(".")
    if head == "blocks":
        return f"block {rest[0]}"
    parts = {"embed": "token embedding", "pos_embed": "position embedding", "ln_final": "final norm"}
    return f"the {parts.get(head, 'unembedding')}"
