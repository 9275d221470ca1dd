"""Running a model on tokens: the part of a subject that needs no tokenizer and no task."""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from algoscope.config import ModelConfig
from algoscope.core.ambient import settled
from algoscope.core.errors import CheckpointError, DivergedError, VocabularyError
from algoscope.core.sites import Key, Site, find_site
from algoscope.core.threads import right_sized
from algoscope.networks.kv_cache import KeyValueCache
from algoscope.networks.transformer import Transformer
from algoscope.subjects.cache import ActivationCache
from algoscope.subjects.edits import Edit, Editor, some
from algoscope.subjects.sweep import run_each
from algoscope.tasks.base import Tokens

Mask = Bool[Tensor, "batch key"] | None


class Runner:
    """Runs a model, with recorded sites and edits. The model is never changed."""

    def __init__(self, name: str, model: Transformer) -> None:
        self.name, self.model = name, model.eval().requires_grad_(False)
        self.cfg: ModelConfig = model.cfg
        self.require_finite()
        self._n_weights = sum(weight.numel() for weight in model.parameters())

    @property
    def sites(self) -> tuple[Site, ...]:
        """The sites of this model: every activation that can be recorded or edited.

        Example:
            >>> import algoscope as ag
            >>> [site.name for site in ag.open("planted:induction").sites][:2]
            ['hook_embed', 'hook_pos_embed']
        """
        return self.model.sites

    @property
    def dtype(self) -> torch.dtype:
        """The float type of the weights."""
        return self.model.embed.weight.dtype

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return self.model.embed.weight.device

    @settled()
    def run(
        self,
        tokens: Tokens,
        *,
        record: Sequence[Key] = (),
        edits: Sequence[Edit] = (),
        at: slice = slice(None),
        attention_mask: Mask = None,
    ) -> tuple[Float[Tensor, "batch read d_vocab"], ActivationCache]:
        """Run the model once, with edits, and return logits and recorded activations.

        Args:
            tokens: token ids [batch pos].
            record: sites to record, under any of their names.
            edits: interventions, applied in this order.
            at: positions at which logits are computed.
            attention_mask: [batch pos], false at padding: no query attends to it, and positions are counted from the
                first token that is not padding.
        Returns:
            Logits at the positions `at`, and the recorded activations after the edits.
        Raises:
            UnknownNameError: for an unknown site.
            EditError: for an edit that cannot be applied.
            VocabularyError: for tokens outside the vocabulary or the context.

        Example:
            >>> import algoscope as ag
            >>> model = ag.open("planted:induction")
            >>> logits, cache = model.run(model.to_tokens("abcab"), record=[("pattern", 1)])
            >>> cache["pattern", 1].shape  # [batch head query key]
            torch.Size([1, 2, 5, 5])
        """
        self._check(tokens)
        editor = Editor(self._located(edits), frozenset(find_site(key, self.sites) for key in record))
        with right_sized(self._operations(tokens)):
            logits = self.model(tokens, at=at, tap=editor, mask=attention_mask)
        self._require_finite_logits(logits, edited=bool(edits))
        return logits, ActivationCache(editor.values, self.sites)

    @settled()
    def run_each(
        self,
        tokens: Tokens,
        edits: Sequence[Edit],
        *,
        at: slice = slice(None),
        among: Int[Tensor, "some"] | None = None,
        reduce: Callable[[Float[Tensor, "edit batch read d_vocab"]], Tensor] | None = None,
        incremental: bool = True,
    ) -> Tensor:
        """Run the model once per edit, with that edit alone: a sweep of patches or ablations.

        Args:
            tokens: token ids [batch pos].
            edits: one run each.
            at: positions at which logits are computed.
            among: tokens whose logits are computed; None: all.
            reduce: a function of the logits of some edits that returns what is kept [edit ...], so that the logits of
                all edits are never in memory at once.
            incremental: compute only what an edit can change; false runs the whole model for each edit, the reference
                in tests.
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
        if not incremental:
            each = []
            for edit in some(edits):
                logits = self.run(tokens, edits=[edit], at=at)[0][None]
                logits = logits if among is None else logits[..., among]
                each.append(logits if reduce is None else reduce(logits))
            return torch.cat(each)
        self._check(tokens)
        located = self._located(some(edits))
        with right_sized(self._operations(tokens) * len(edits) / 2):
            return run_each(self.model, tokens, located, at, among, reduce)

    def run_with_cache(
        self, tokens: Tokens, names_filter: Callable[[str], bool] | None = None
    ) -> tuple[Float[Tensor, "batch pos d_vocab"], ActivationCache]:
        """Run the model and record everything, as TransformerLens does.

        Args:
            tokens: token ids [batch pos].
            names_filter: which sites to record, by full name (`blocks.0.attn.hook_z`); None: all.
        Returns:
            Logits at every position, and the activations.

        Example:
            >>> import algoscope as ag
            >>> model = ag.open("planted:induction")
            >>> _, cache = model.run_with_cache(model.to_tokens("abcab"), lambda name: name.endswith("hook_z"))
            >>> list(cache)
            ['blocks.0.attn.hook_z', 'blocks.1.attn.hook_z']
        """
        names = [site.name for site in self.sites if names_filter is None or names_filter(site.name)]
        return self.run(tokens, record=names)

    def __call__(self, tokens: Tokens) -> Float[Tensor, "batch pos d_vocab"]:
        """The logits at every position."""
        return self.run(tokens)[0]

    @settled()
    def unembed(self, stream: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos d_vocab"]:
        """Logits of a residual stream: final norm, then unembedding, as in the logit lens.

        Example:
            >>> import algoscope as ag
            >>> model = ag.open("planted:induction")
            >>> logits, cache = model.run(model.to_tokens("abcab"), record=[("resid_post", -1)])
            >>> bool((model.unembed(cache["resid_post", -1]) == logits).all())
            True
        """
        return self.model.to_logits(stream)

    @settled()
    def generate_tokens(
        self, prompts: Int[Tensor, "batch read"], n_new: int, *, use_cache: bool = True, attention_mask: Mask = None
    ) -> Int[Tensor, "batch new"]:
        """The next tokens of each prompt by greedy decoding.

        Args:
            prompts: token ids, shorter ones padded on the left (`pad`).
            n_new: number of tokens.
            use_cache: use a key-value cache; false recomputes every position, with the same result.
            attention_mask: false at padding.
        Raises:
            VocabularyError: for more tokens than the context holds.

        Example:
            >>> import algoscope as ag
            >>> model = ag.open("planted:induction")
            >>> model.to_string(model.generate_tokens(model.to_tokens("abcab"), 4)[0])
            'cabc'
        """
        self._check(prompts)
        if prompts.shape[1] + n_new - 1 > self.cfg.n_ctx:
            raise VocabularyError(
                f"{prompts.shape[1]} tokens and {n_new} new ones are more than the context of {self.name}: "
                f"{self.cfg.n_ctx}"
            )
        cache = KeyValueCache() if use_cache and self.cfg.causal else None
        tokens, fresh, mask = prompts, prompts, attention_mask
        with right_sized(self._operations(prompts)):
            for _ in range(n_new):
                logits = self.model(tokens if cache is None else fresh, at=slice(-1, None), cache=cache, mask=mask)
                self._require_finite_logits(logits)
                fresh = logits.argmax(dim=-1)
                tokens = torch.cat([tokens, fresh], dim=1)
                mask = None if mask is None else torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1)
        return tokens[:, prompts.shape[1] :]

    def require_finite(self) -> None:
        """Raises CheckpointError, naming the part of the model, where a weight is not a finite number.

        It is asked when a subject is made, when a lens is given one, and when logits are not finite.
        """
        for name, weight in self.model.named_parameters():
            if weight.sum(dtype=torch.float32).isfinite() or weight.isfinite().all():
                continue
            limit = f"{str(weight.dtype).removeprefix('torch.')} ends at {torch.finfo(weight.dtype).max:,.0f}"
            small = weight.dtype == torch.float16
            raise CheckpointError(
                f"{self.name}: weights of {_part(name)} are not finite ({name}): "
                + (f"{limit}, so use bfloat16 or float32" if small else "restore them from a backup, or train again")
            )

    def _require_finite_logits(self, logits: Tensor, edited: bool = False) -> None:
        """Raises an error where logits are not finite, other than by an edit."""
        if logits.isfinite().all():
            return
        self.require_finite()
        if not edited:
            kind = str(logits.dtype).removeprefix("torch.")
            raise DivergedError(
                f"{self.name}: its logits are not finite in {kind}, although its weights are: use to_dtype with a "
                "wider float type, such as torch.float32"
            )

    def token_embedding(self) -> Float[Tensor, "d_vocab d_model"]:
        """W_E, one row per token."""
        return self.model.embed.weight.detach()

    def position_embedding(self) -> Float[Tensor, "pos d_model"] | None:
        """W_pos, one row per position; None where position embeddings are not learned."""
        return None if self.model.W_pos is None else self.model.W_pos.detach()

    def _operations(self, tokens: Tokens) -> float:
        """Floating-point operations of one run, roughly: two for each weight and token."""
        return 2.0 * self._n_weights * tokens.numel()

    def _located(self, edits: Sequence[Edit]) -> list[tuple[Site, Edit]]:
        sites = {key: find_site(key, self.sites) for key in {edit.site for edit in edits}}
        return [(sites[edit.site], edit) for edit in edits]

    def _check(self, tokens: Tokens) -> None:
        low, high = (int(tokens.min()), int(tokens.max())) if tokens.numel() else (0, 0)
        if low < 0 or high >= self.cfg.d_vocab:
            worst = low if low < 0 else high
            raise VocabularyError(f"token {worst} is outside the {self.cfg.d_vocab} tokens of {self.name}")
        if tokens.shape[1] > self.cfg.n_ctx:
            raise VocabularyError(
                f"{tokens.shape[1]} tokens are more than the context of {self.name}: {self.cfg.n_ctx}"
            )


def _part(name: str) -> str:
    """The part of a model that a weight belongs to, in words."""
    head, *rest = name.split(".")
    if head == "blocks":
        return f"block {rest[0]}"
    parts = {"embed": "token embedding", "pos_embed": "position embedding", "ln_final": "final norm"}
    return f"the {parts.get(head, 'unembedding')}"
