"""A Transformer as a subject: ours, a planted one, or the weights of another library in our architecture."""

import copy
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from algoscope.config import ModelConfig
from algoscope.core.errors import VocabularyError
from algoscope.core.sites import Key, Site, find_site
from algoscope.core.threads import right_sized
from algoscope.networks.folding import fold
from algoscope.networks.memory import KeyValues
from algoscope.networks.places import at_width_of
from algoscope.networks.prefixes import shared_logits
from algoscope.networks.transformer import Transformer
from algoscope.subjects.base import Mask, Subject
from algoscope.subjects.cache import ActivationCache
from algoscope.subjects.edits import Edit, Editor, some
from algoscope.subjects.sweep import run_each
from algoscope.subjects.text import TaskText, Text
from algoscope.tasks.base import Task, Tokens
from algoscope.training.runs import Run, weights_hash


class NativeSubject(Subject):
    """A Transformer, with the task it was made for or the text that it reads."""

    def __init__(
        self,
        name: str,
        model: Transformer,
        task: Task | None = None,
        origin: Run | None = None,
        text: Text | None = None,
    ) -> None:
        assert task is not None or text is not None, "a subject needs a task, or a text to read"
        model = model if task is None else at_width_of(model, task)
        self.name, self.model, self._task, self.origin = name, model.eval().requires_grad_(False), task, origin
        self.cfg: ModelConfig = model.cfg
        self.text: Text = text or TaskText(self.task)
        self._n_weights = sum(weight.numel() for weight in model.parameters())
        self._hash: tuple[tuple[int, ...], str] | None = None

    @torch.no_grad()
    def run(
        self,
        tokens: Tokens,
        *,
        record: Sequence[Key] = (),
        edits: Sequence[Edit] = (),
        at: slice = slice(None),
        attention_mask: Mask = None,
    ) -> tuple[Float[Tensor, "batch read d_vocab"], ActivationCache]:
        self._check(tokens)
        editor = Editor(self._located(edits), frozenset(find_site(key, self.sites) for key in record))
        with right_sized(self._operations(tokens)):
            logits = self.model(tokens, at=at, tap=editor, mask=attention_mask)
        return logits, ActivationCache(editor.values, self.sites)

    @torch.no_grad()
    def run_each(
        self,
        tokens: Tokens,
        edits: Sequence[Edit],
        *,
        at: slice = slice(None),
        among: Int[Tensor, "some"] | None = None,
        reduce: Callable[[Float[Tensor, "edit batch read d_vocab"]], Tensor] | None = None,
    ) -> Tensor:
        self._check(tokens)
        located = self._located(some(edits))
        with right_sized(self._operations(tokens) * len(edits) / 2):
            return run_each(self.model, tokens, located, at, among, reduce)

    def _operations(self, tokens: Tokens) -> float:
        """Floating-point operations of one run, roughly: two for each weight and token."""
        return 2.0 * self._n_weights * tokens.numel()

    def _located(self, edits: Sequence[Edit]) -> list[tuple[Site, Edit]]:
        found = {key: find_site(key, self.sites) for key in {edit.site for edit in edits}}
        return [(found[edit.site], edit) for edit in edits]

    def _check(self, tokens: Tokens) -> None:
        low, high = (int(tokens.min()), int(tokens.max())) if tokens.numel() else (0, 0)
        if low < 0 or high >= self.cfg.d_vocab:
            worst = low if low < 0 else high
            raise VocabularyError(f"token {worst} is outside the {self.cfg.d_vocab} tokens of {self.name}")
        if tokens.shape[1] > self.cfg.n_ctx:
            raise VocabularyError(
                f"{tokens.shape[1]} tokens are more than the context of {self.name}: {self.cfg.n_ctx}"
            )

    @torch.no_grad()
    def read_out(self, stream: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos d_vocab"]:
        return self.model.read_out(stream)

    @torch.no_grad()
    def answer_logits(self, tokens: Tokens) -> Float[Tensor, "batch read d_vocab"]:
        return shared_logits(self.model, tokens[:, :-1], self.task.answer_slice)

    @torch.no_grad()
    def generate_tokens(
        self, prompts: Int[Tensor, "batch read"], n_new: int, *, use_cache: bool = True, attention_mask: Mask = None
    ) -> Int[Tensor, "batch new"]:
        self._check(prompts)
        if prompts.shape[1] + n_new - 1 > self.cfg.n_ctx:
            raise VocabularyError(
                f"{prompts.shape[1]} tokens and {n_new} new ones are more than the context of {self.name}: "
                f"{self.cfg.n_ctx}"
            )
        past = KeyValues() if use_cache and self.cfg.causal else None
        tokens, fresh, mask = prompts, prompts, attention_mask
        with right_sized(self._operations(prompts)):
            for _ in range(n_new):
                logits = self.model(tokens if past is None else fresh, at=slice(-1, None), past=past, mask=mask)
                fresh = logits.argmax(dim=-1)
                tokens = torch.cat([tokens, fresh], dim=1)
                mask = None if mask is None else torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1)
        return tokens[:, prompts.shape[1] :]

    # ------------------------------------------------------------------ identity

    @property
    def sites(self) -> tuple[Site, ...]:
        return self.model.sites

    @property
    def dtype(self) -> torch.dtype:
        return self.model.embed.weight.dtype

    @property
    def device(self) -> torch.device:
        return self.model.embed.weight.device

    @property
    def weights_sha256(self) -> str:
        """Computed again only where a weight has been written to."""
        weights = self.model.state_dict()
        versions = tuple(weight._version for weight in weights.values())
        if self._hash is None or self._hash[0] != versions:
            self._hash = versions, weights_hash(weights)
        return self._hash[1]

    def with_model(self, model: Transformer, name: str | None = None) -> "NativeSubject":
        """Another model in the place of this one: same task, same text."""
        return NativeSubject(name or self.name, model, self._task, self.origin, self.text)

    def folded(self) -> tuple["NativeSubject", tuple[str, ...]]:
        """A copy with norms folded and weights centred, which predicts the same probabilities, and what was changed."""
        model, changes = fold(self.model)
        return self.with_model(model, f"{self.name} (folded)"), changes

    def to_dtype(self, dtype: torch.dtype) -> "NativeSubject":
        return self.with_model(copy.deepcopy(self.model).to(dtype))

    def before_training(self) -> "NativeSubject | None":
        if self.origin is None or 0 not in self.origin.steps:
            return None
        return self.with_model(self.origin.model(0, self.device).to(self.dtype), f"{self.name}@0")

    def token_embedding(self) -> Float[Tensor, "d_vocab d_model"]:
        return self.model.embed.weight.detach()

    def position_embedding(self) -> Float[Tensor, "pos d_model"] | None:
        return None if self.model.W_pos is None else self.model.W_pos.detach()
