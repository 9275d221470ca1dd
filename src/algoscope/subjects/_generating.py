"""Greedy decoding: the part of a subject that makes new tokens, with edits and recorded sites."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import overload

import torch
from jaxtyping import Int
from torch import Tensor

from algoscope.core.ambient import usual_torch
from algoscope.core.arguments import Natural, checked_arguments
from algoscope.core.errors import EditError, VocabularyError
from algoscope.core.sites import KINDS, Site, find_site
from algoscope.core.threads import right_sized
from algoscope.networks.kv_cache import KeyValueCache
from algoscope.networks.transformer import Transformer
from algoscope.subjects._arguments import Keys, MaskLike, TokenIds, keys_of, mask_of
from algoscope.subjects._running import Edits, Runner
from algoscope.subjects.cache import ActivationCache, Recorder
from algoscope.subjects.edits import Edit

POSITIONS = ("pos", "query", "key")


@dataclass(frozen=True, eq=False)
class GeneratingEdit:
    """An edit of a sequence of `n_pos` positions, applied to those of them that one forward pass computes.

    So a pass over all positions and one over the newest alone, beside a key-value cache, give the same.
    """

    site: Site
    edit: Edit
    n_pos: int

    @classmethod
    def of(
        cls, site: Site, edit: Edit, model: Transformer, n_inputs: int, n_prompt: int, n_new: int
    ) -> "GeneratingEdit":
        """The edit of the whole sequence, or of the prompt where its positions are there and its value is of the
        prompt's length. Raises EditError for one that fits neither.
        """
        n_pos = n_prompt + n_new
        whole, prompt = (model.shape_of(site, n_inputs, n) for n in (n_pos, n_prompt))
        try:
            edit.check(whole, site.kind)
        except EditError:
            limits = edit.coverage(whole, site.kind).limits
            axes = [axis for axis, name in enumerate(KINDS[site.kind].axes) if name in POSITIONS and axis in limits]
            if edit.pos is None or any(max(limits[axis]) >= n_prompt for axis in axes):
                raise
            edit.check(prompt, site.kind)
            n_pos = n_prompt
        return cls(site, edit, n_pos)

    def apply(self, value: Tensor, first: int) -> Tensor:
        """The value of the positions from `first` on, edited."""
        axes = KINDS[self.site.kind].axes
        spans = [slice(None)] * value.ndim  # of this value in that of the whole sequence
        kept = [slice(None)] * value.ndim  # what of it the edit may change
        for axis, name in enumerate(axes):
            if name in POSITIONS:
                start = 0 if name == "key" else first
                spans[axis] = slice(start, start + value.shape[axis])
                kept[axis] = slice(0, max(0, self.n_pos - start))
        shape = [self.n_pos if name in POSITIONS else size for name, size in zip(axes, value.shape, strict=True)]
        whole = value.new_full(shape, float("-inf") if self.site.kind == "attn_scores" else 0.0)
        whole[tuple(spans)] = value[tuple(kept)]
        edited = value.clone()
        edited[tuple(kept)] = self.edit.apply(whole, self.site.kind)[tuple(spans)]
        return edited


class GeneratingEditor(Recorder):
    """A tap that applies edits in a forward pass over the positions from `first` on, and records."""

    def __init__(self, edits: Sequence[GeneratingEdit], record: Iterable[Site] = ()) -> None:
        super().__init__(frozenset(record))
        self.edits, self.first = edits, 0
        sites = [*self.sites, *(edit.site for edit in edits)]
        self.kinds, self.layers = frozenset(site.kind for site in sites), frozenset(site.layer for site in sites)

    def __call__(self, kind: str, layer: int | None, value: Tensor) -> Tensor:
        for edit in self.edits:
            if edit.site == Site(kind, layer):
                value = edit.apply(value, self.first)
        return super().__call__(kind, layer, value)


@checked_arguments
class Generator(Runner):
    """A model that decodes."""

    @overload
    def generate_tokens(
        self,
        prompts: TokenIds,
        n_new: int,
        *,
        use_cache: bool = ...,
        attention_mask: MaskLike = ...,
        edits: Edits = ...,
    ) -> Int[Tensor, "batch new"]: ...

    @overload
    def generate_tokens(
        self,
        prompts: TokenIds,
        n_new: int,
        *,
        use_cache: bool = ...,
        attention_mask: MaskLike = ...,
        edits: Edits = ...,
        record: Keys,
    ) -> tuple[Int[Tensor, "batch new"], ActivationCache]: ...

    @usual_torch()
    def generate_tokens(
        self,
        prompts: TokenIds,
        n_new: Natural,
        *,
        use_cache: bool = True,
        attention_mask: MaskLike = None,
        edits: Edits = (),
        record: Keys | None = None,
    ) -> Int[Tensor, "batch new"] | tuple[Int[Tensor, "batch new"], ActivationCache]:
        """The next tokens of each prompt by greedy decoding; with `edits` steered, with `record` also activations.

        Edits hold in every forward pass. Their positions count over the whole sequence, padding, prompt and new tokens:
        0 is the first token of the prompt, -1 the last new one; an edit without positions changes all of them. A value
        is given for the whole sequence, or, for positions within the prompt, for the prompt.

        Args:
            prompts: token ids, shorter ones padded on the left (`pad`).
            n_new: number of tokens.
            use_cache: use a key-value cache; false recomputes every position, with the same result.
            attention_mask: false at padding.
            edits: interventions, as for `run`.
            record: sites to record, as for `run`; None: only tokens are returned.
        Returns:
            The new tokens; with `record` also the activations of the whole sequence, prompt and all new tokens.
        Raises:
            VocabularyError: for more tokens than the context holds.
            EditError: for an edit that cannot be applied to the sequence.

        Example:
            >>> import algoscope as ag
            >>> model = ag.open("planted:induction")
            >>> model.to_string(model.generate_tokens(model.to_tokens("abcab"), 4)[0])
            'cabc'
            >>> towards_e = ag.Add(("resid_post", -1), value=model.model.W_U[4], scale=100.0, pos=slice(6, None))
            >>> tokens, cache = model.generate_tokens(model.to_tokens("abcab"), 4, edits=towards_e, record=[("z", 1)])
            >>> model.to_string(tokens[0]), cache["z", 1].shape  # [batch pos head d_head]
            ('caee', torch.Size([1, 9, 2, 64]))
        """
        prompts = self._ids(prompts)
        n_inputs, n_prompt = prompts.shape
        most = n_prompt + n_new - (record is None)  # the last new token is read only to record it
        if most > self._sizes.n_ctx:
            to_record = "" if record is None else ", all of which are read to record activations,"
            raise VocabularyError(
                f"{n_prompt} tokens and {n_new} new ones{to_record} are more than the context of {self.name}: "
                f"{self._sizes.n_ctx}"
            )
        cache = KeyValueCache() if use_cache and self._sizes.causal else None
        located = self._located(edits)
        editor = GeneratingEditor(
            [GeneratingEdit.of(site, edit, self.model, n_inputs, n_prompt, n_new) for site, edit in located]
        )
        tokens, mask = prompts, mask_of(attention_mask, prompts)
        listed = [edit for _, edit in located]
        with right_sized(self._operations(prompts)):
            for _ in range(n_new):
                editor.first = 0 if cache is None else cache.length(0)
                new = tokens[:, editor.first :]
                logits = self._network(new, at=slice(-1, None), cache=cache, tap=editor, mask=mask)
                self._require_finite_results(tokens, mask, listed, logits, {})
                tokens = torch.cat([tokens, logits.argmax(dim=-1)], dim=1)
                mask = None if mask is None else torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1)
            if record is not None:
                editor = GeneratingEditor(editor.edits, [find_site(key, self.sites) for key in keys_of(record)])
                logits = self._network(tokens, at=slice(-1, None), tap=editor, mask=mask)
                self._require_finite_results(tokens, mask, listed, logits, editor.values)
        if record is None:
            return tokens[:, n_prompt:]
        values = {site: self._result(value) for site, value in editor.values.items()}
        return tokens[:, n_prompt:], ActivationCache(values, self.sites)
