"""What every subject can do, whatever model is behind it."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from algoscope.config import ModelConfig
from algoscope.core.errors import TaskMismatchError
from algoscope.core.sites import Site
from algoscope.subjects.cache import ActivationCache, Key
from algoscope.subjects.edits import Edit
from algoscope.tasks.base import Task, Tokens
from algoscope.training.runs import Run


class Subject(ABC):
    """A model under study: its shape, its task, and pure runs. Nothing that is asked of it changes it.

    `origin` is the run folder it came from, where there is one.
    """

    name: str
    cfg: ModelConfig
    task: Task
    origin: Run | None

    # ------------------------------------------------------------------ running

    @abstractmethod
    def run(
        self, tokens: Tokens, *, record: Sequence[Key] = (), edits: Sequence[Edit] = (), at: slice = slice(None)
    ) -> tuple[Float[Tensor, "batch read d_vocab"], ActivationCache]:
        """Logits at the positions `at`, and the recorded sites, with the edits made on the way.

        Raises UnknownNameError for a site it has not, EditError for an edit that cannot be made.
        """

    def run_each(
        self, tokens: Tokens, edits: Sequence[Edit], *, at: slice = slice(None)
    ) -> Float[Tensor, "edit batch read d_vocab"]:
        """Logits at the positions `at` of one run for each edit, that edit alone made in it.

        This one runs the whole model each time: the reference for subjects that know a faster way.
        """
        return torch.stack([self.run(tokens, edits=[edit], at=at)[0] for edit in edits])

    @abstractmethod
    def answer_logits(self, tokens: Tokens) -> Float[Tensor, "batch read d_vocab"]:
        """Logits at the task's answer positions of whole sequences, each seeing only what comes before it.

        Neighbouring rows that begin alike are computed once as far as they are alike.
        """

    @abstractmethod
    def generate_tokens(
        self, prompts: Int[Tensor, "batch read"], n_new: int, *, use_cache: bool = True
    ) -> Int[Tensor, "batch new"]:
        """The next `n_new` tokens of each prompt, greedily."""

    @abstractmethod
    def to_dtype(self, dtype: torch.dtype) -> "Subject":
        """A copy that computes in another float type."""

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
    @abstractmethod
    def dtype(self) -> torch.dtype:
        """The float type it computes in."""

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """Where it computes."""

    @property
    @abstractmethod
    def weights_sha256(self) -> str:
        """Equal hashes, equal weights."""

    @abstractmethod
    def before_training(self) -> "Subject | None":
        """The same model at step 0, where that is known."""

    @abstractmethod
    def token_embedding(self) -> Float[Tensor, "d_vocab d_model"]:
        """W_E, one row a token."""

    @abstractmethod
    def position_embedding(self) -> Float[Tensor, "pos d_model"] | None:
        """W_pos, one row a position; None where positions are not learned vectors."""

    @property
    @abstractmethod
    def sites(self) -> tuple[Site, ...]:
        """The sites that this model has."""

    # ------------------------------------------------------------------ text

    def to_tokens(self, text: str | Sequence[str]) -> Tokens:
        """Token numbers [batch pos] of one text or of several of equal length, written in the task's vocabulary.

        Raises VocabularyError for text outside it.
        """
        rows = [self.task.encode(one) for one in ([text] if isinstance(text, str) else text)]
        if len({len(row) for row in rows}) > 1:
            raise TaskMismatchError(f"the texts have different lengths in tokens: {[len(row) for row in rows]}")
        return torch.tensor(rows, device=self.device)

    def to_string(self, tokens: Int[Tensor, "pos"]) -> str:
        return self.task.decode(tokens.tolist())

    def to_str_tokens(self, tokens: Int[Tensor, "pos"]) -> list[str]:
        """Each token's text."""
        return [self.task.vocabulary[i] for i in tokens.tolist()]

    def generate(self, text: str, *, use_cache: bool = True) -> str:
        """What the model answers to a prompt (`123+456`), token by token, up to and with the end-of-sequence."""
        prompt = self.to_tokens(self.task.prompt(text))
        new = self.generate_tokens(prompt, self.task.n_ctx - prompt.shape[1], use_cache=use_cache)[0].tolist()
        end = self.task.vocabulary.index("<EOS>")
        return self.task.decode(new[: new.index(end) + 1] if end in new else new)

    def complete(self, text: str) -> Tokens:
        """One whole sequence [1, n_ctx]: the prompt meant by the text, then the model's own greedy answer."""
        prompt = self.to_tokens(self.task.prompt(text))
        return torch.cat([prompt, self.generate_tokens(prompt, self.task.n_ctx - prompt.shape[1])], dim=1)
