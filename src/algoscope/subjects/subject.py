"""The subject: a model under study, with the task it was made for or the text that it reads.

One class for every model that can be opened: our runs, planted models, and the weights of another tool, all of them as
our own transformer.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from algoscope.config import ModelConfig
from algoscope.core.errors import TaskMismatchError, VocabularyError
from algoscope.core.finding import Finding, ResultTable
from algoscope.core.panel import Panel
from algoscope.core.sites import Key, Site, find_site
from algoscope.core.threads import right_sized
from algoscope.networks.digit_positions import at_width_of
from algoscope.networks.folding import fold
from algoscope.networks.kv_cache import KeyValueCache
from algoscope.networks.shared_prefixes import shared_logits
from algoscope.networks.transformer import Transformer
from algoscope.runs.run_folder import Run, weights_hash
from algoscope.subjects.cache import ActivationCache
from algoscope.subjects.edits import Edit, Editor, some
from algoscope.subjects.prompt import Prompt
from algoscope.subjects.sweep import run_each
from algoscope.subjects.text import TaskText, Text
from algoscope.tasks.base import Task, Tokens

Mask = Bool[Tensor, "batch key"] | None
FREE_TOKENS = 20  # how far a model of free text goes on when nobody says


class Subject:
    """A model under study: its shape, its task, and pure runs. Nothing that is asked of it changes it.

    `text` is how it reads and writes; `origin` is the run folder it came from, where there is one; `note` is what
    whoever reads a verdict on it should know.
    """

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
        self.note = ""
        self._n_weights = sum(weight.numel() for weight in model.parameters())
        self._hash: tuple[tuple[int, ...], str] | None = None

    @property
    def has_task(self) -> bool:
        return self._task is not None

    @property
    def task(self) -> Task:
        """The question it was made for. Raises TaskMismatchError for a model of free text, which has none."""
        if self._task is None:
            raise TaskMismatchError(
                f"{self.name} reads free text and has no task, so no answer of it is right or wrong: "
                "give a model of a task, such as run:NAME or planted:carry-adder"
            )
        return self._task

    # ------------------------------------------------------------------ running

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
        """Logits at the positions `at`, and the recorded sites, with the edits made on the way.

        `attention_mask` is false at padding: nothing looks there, and positions are counted from the first token that
        is not padding. Raises UnknownNameError for a site it has not, EditError for an edit that cannot be made,
        VocabularyError for tokens outside its vocabulary or context.
        """
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
        incremental: bool = True,
    ) -> Tensor:
        """Logits [edit batch read d_vocab] at the positions `at` of one run for each edit, that edit alone made in it.

        `among`: the logits of these tokens only. `reduce` makes of the logits of some edits what is kept of them
        [edit ...], so that the logits of all never exist at once. `incremental`: compute only what an edit can change;
        false runs the whole model for each edit, the reference that the other way is tested against. Raises what `run`
        raises, and EditError for no edits.
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
    def unembed(self, stream: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos d_vocab"]:
        """Logits as if this residual stream were the last: final norm, then unembedding."""
        return self.model.to_logits(stream)

    @torch.no_grad()
    def answer_logits(self, tokens: Tokens) -> Float[Tensor, "batch read d_vocab"]:
        """Logits at the task's answer positions of whole sequences, each seeing only what comes before it.

        Neighbouring rows with a common prefix compute it once.
        """
        return shared_logits(self.model, tokens[:, :-1], self.task.answer_slice)

    @torch.no_grad()
    def generate_tokens(
        self, prompts: Int[Tensor, "batch read"], n_new: int, *, use_cache: bool = True, attention_mask: Mask = None
    ) -> Int[Tensor, "batch new"]:
        """The next `n_new` tokens of each prompt, greedily; shorter prompts are padded on the left (`pad`)."""
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
                fresh = logits.argmax(dim=-1)
                tokens = torch.cat([tokens, fresh], dim=1)
                mask = None if mask is None else torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1)
        return tokens[:, prompts.shape[1] :]

    def run_with_cache(
        self, tokens: Tokens, names_filter: Callable[[str], bool] | None = None
    ) -> tuple[Float[Tensor, "batch pos d_vocab"], ActivationCache]:
        """Logits everywhere, and every site (those whose full name the filter accepts)."""
        names = [site.name for site in self.sites if names_filter is None or names_filter(site.name)]
        return self.run(tokens, record=names)

    def __call__(self, tokens: Tokens) -> Float[Tensor, "batch pos d_vocab"]:
        return self.run(tokens)[0]

    # ------------------------------------------------------------------ identity

    @property
    def sites(self) -> tuple[Site, ...]:
        """The sites that this model has."""
        return self.model.sites

    @property
    def dtype(self) -> torch.dtype:
        """The float type it computes in."""
        return self.model.embed.weight.dtype

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.model.embed.weight.device

    @property
    def weights_sha256(self) -> str:
        """Equal hashes, equal weights; computed again only where a weight has been written to."""
        weights = self.model.state_dict()
        versions = tuple(weight._version for weight in weights.values())
        if self._hash is None or self._hash[0] != versions:
            self._hash = versions, weights_hash(weights)
        return self._hash[1]

    def with_model(self, model: Transformer, name: str | None = None) -> "Subject":
        """Another model under study instead of this one: same task, same text."""
        return Subject(name or self.name, model, self._task, self.origin, self.text)

    def folded(self) -> tuple["Subject", tuple[str, ...]]:
        """A copy with norms folded and weights centred, which predicts the same probabilities, and what was changed."""
        model, changes = fold(self.model)
        return self.with_model(model, f"{self.name} (folded)"), changes

    def to_dtype(self, dtype: torch.dtype) -> "Subject":
        """A copy that computes in another float type."""
        return self.with_model(copy.deepcopy(self.model).to(dtype))

    def before_training(self) -> "Subject | None":
        """The same model at step 0, where that is known."""
        if self.origin is None or 0 not in self.origin.steps:
            return None
        return self.with_model(self.origin.model(0, self.device).to(self.dtype), f"{self.name}@0")

    def token_embedding(self) -> Float[Tensor, "d_vocab d_model"]:
        """W_E, one row a token."""
        return self.model.embed.weight.detach()

    def position_embedding(self) -> Float[Tensor, "pos d_model"] | None:
        """W_pos, one row a position; None where positions are not learned vectors."""
        return None if self.model.W_pos is None else self.model.W_pos.detach()

    def finding(
        self,
        kind: str,
        claim: str,
        facts: Mapping[str, Any],
        panels: Sequence[Panel] = (),
        *,
        about: str = "",
        tables: Sequence[ResultTable] = (),
        **provenance: Any,
    ) -> Finding:
        """A finding about this subject, with its name and weights hash; `provenance` adds a seed and the like."""
        return Finding(
            kind=kind,
            claim=claim,
            facts={"subject": self.name, **facts},
            panels=tuple(panels),
            provenance={"subject": self.name, "weights_sha256": self.weights_sha256, **provenance},
            about=about,
            tables=tuple(tables),
        )

    # ------------------------------------------------------------------ text

    def to_tokens(self, text: str | Sequence[str]) -> Tokens:
        """Token numbers [batch pos] of one text or of several of equal length.

        Raises VocabularyError for text outside the vocabulary, TaskMismatchError for different lengths (see `pad`).
        """
        rows = [self.text.encode(one) for one in ([text] if isinstance(text, str) else text)]
        if len({len(row) for row in rows}) > 1:
            raise TaskMismatchError(f"the texts have different lengths in tokens: {[len(row) for row in rows]}")
        if not rows or not rows[0]:
            raise VocabularyError("there are no tokens in an empty text")
        return torch.tensor(rows, device=self.device)

    def pad(self, texts: Sequence[str]) -> tuple[Tokens, Bool[Tensor, "batch pos"]]:
        """Token numbers of texts of any lengths, padded on the left, and the mask that is false at the padding."""
        rows = [self.to_tokens(text)[0] for text in texts]
        longest = max(map(len, rows))
        tokens = torch.stack([F.pad(row, (longest - len(row), 0)) for row in rows])
        length = torch.tensor([[len(row)] for row in rows], device=self.device)
        return tokens, torch.arange(longest, device=self.device) >= longest - length

    def to_string(self, tokens: Int[Tensor, "pos"]) -> str:
        return self.text.decode(tokens.tolist())

    def to_str_tokens(self, tokens: Int[Tensor, "pos"]) -> list[str]:
        """Each token's text."""
        return [self.text.token(i) for i in tokens.tolist()]

    def token_labels(self, tokens: Int[Tensor, "pos"]) -> tuple[str, ...]:
        """What axes of figures say: `token_position`."""
        return tuple(f"{token}_{i}" for i, token in enumerate(self.to_str_tokens(tokens)))

    def generate(self, text: str, n_new: int | None = None, *, use_cache: bool = True) -> str:
        """What the model says after a prompt, greedily, token by token.

        A model of a task answers the prompt meant (`123+456`) up to and with the end-of-sequence; one of free text
        goes on for `n_new` tokens (20 where it is not said).
        """
        return self.generate_many([text], n_new, use_cache=use_cache)[0]

    def generate_many(self, texts: Sequence[str], n_new: int | None = None, *, use_cache: bool = True) -> list[str]:
        """As `generate`, for prompts of any lengths in one batch."""
        prompts, mask = self.pad([self._task.prompt(text) for text in texts] if self._task else texts)
        if n_new is None:
            n_new = self._task.n_ctx - prompts.shape[1] if self._task else FREE_TOKENS
        new = self.generate_tokens(prompts, n_new, use_cache=use_cache, attention_mask=None if mask.all() else mask)
        return [self.text.decode(self._until_end(row)) for row in new.tolist()]

    def _until_end(self, row: list[int]) -> list[int]:
        end = self.text.end_token
        return row[: row.index(end) + 1] if end in row else row

    def lay_out(self, text: str) -> Prompt:
        """What a lens looks at when it is given a text: with a task the prompt meant and the model's own greedy answer.

        Raises VocabularyError for a text that is no prompt of the task, or that no tokens cover.
        """
        if self._task is None:
            tokens = self.to_tokens(text)
            words, last = tuple(self.to_str_tokens(tokens[0])), tokens.shape[1] - 1
            return Prompt(text, tokens, words, last, answer=None, right=None, got=None, expected=None)
        sequence, n = self._task.sequence(text), self._task.prompt_length
        prompt = torch.tensor([sequence[:n]], device=self.device)
        answer = self.generate_tokens(prompt, len(sequence) - n)
        tokens = torch.cat([prompt, answer], dim=1)[:, :-1]
        return Prompt(
            text=text,
            tokens=tokens,
            words=tuple(self.to_str_tokens(tokens[0])),
            first_answer=n - 1,
            answer=tuple(answer[0].tolist()),
            right=tuple(sequence[n:]),
            got=self.text.decode(self._until_end(answer[0].tolist())),
            expected=self.text.decode(sequence[n:]),
        )
