"""What every subject can do, whatever model is behind it."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from algoscope.config import ModelConfig
from algoscope.core.errors import TaskMismatchError, VocabularyError
from algoscope.core.sites import Key, Site
from algoscope.subjects.cache import ActivationCache
from algoscope.subjects.edits import Edit, some
from algoscope.subjects.text import Text
from algoscope.tasks.base import Task, Tokens
from algoscope.training.runs import Run

Mask = Bool[Tensor, "batch key"] | None
FREE_TOKENS = 20  # how far a model of free text goes on when nobody says


class Subject(ABC):
    """A model under study: its shape, its task, and pure runs. Nothing that is asked of it changes it.

    `text` is how it reads and writes; `origin` is the run folder it came from, where there is one; `note` is what
    whoever reads a verdict on it should know.
    """

    name: str
    cfg: ModelConfig
    text: Text
    origin: Run | None
    note: str = ""
    _task: Task | None

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

    @abstractmethod
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

    def run_each(
        self,
        tokens: Tokens,
        edits: Sequence[Edit],
        *,
        at: slice = slice(None),
        among: Int[Tensor, "some"] | None = None,
        reduce: Callable[[Float[Tensor, "edit batch read d_vocab"]], Tensor] | None = None,
    ) -> Tensor:
        """Logits [edit batch read d_vocab] at the positions `at` of one run for each edit, that edit alone made in it.

        `among`: the logits of these tokens only. `reduce` makes of the logits of some edits what is kept of them
        [edit ...], so that the logits of all never exist at once. Raises what `run` raises, and EditError for no edits.

        This one runs the whole model each time: the reference for subjects that know a faster way.
        """
        each = []
        for edit in some(edits):
            logits = self.run(tokens, edits=[edit], at=at)[0][None]
            logits = logits if among is None else logits[..., among]
            each.append(logits if reduce is None else reduce(logits))
        return torch.cat(each)

    @abstractmethod
    def answer_logits(self, tokens: Tokens) -> Float[Tensor, "batch read d_vocab"]:
        """Logits at the task's answer positions of whole sequences, each seeing only what comes before it.

        Neighbouring rows that begin alike are computed once as far as they are alike.
        """

    @abstractmethod
    def read_out(self, stream: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos d_vocab"]:
        """Logits as if this residual stream were the last: final norm, then unembedding."""

    @abstractmethod
    def generate_tokens(
        self, prompts: Int[Tensor, "batch read"], n_new: int, *, use_cache: bool = True, attention_mask: Mask = None
    ) -> Int[Tensor, "batch new"]:
        """The next `n_new` tokens of each prompt, greedily; shorter prompts are padded on the left (`pad`)."""

    @abstractmethod
    def folded(self) -> tuple["Subject", tuple[str, ...]]:
        """A copy with norms folded and weights centred, which predicts the same probabilities, and what was changed."""

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

    def lay_out(self, text: str) -> Tokens:
        """What the model reads [1 pos] when a lens looks at a text.

        With a task: the prompt that is meant, and the model's own greedy answer without its last token, which is never
        read. Else the text.
        """
        return self.complete(text)[:, :-1] if self._task else self.to_tokens(text)

    def first_answer(self, tokens: Tokens) -> int:
        """The position at which the first token of the answer is predicted: after the prompt, or the last of a text."""
        return self._task.prompt_length - 1 if self._task else tokens.shape[1] - 1

    def complete(self, text: str) -> Tokens:
        """One whole sequence [1, n_ctx]: the prompt meant by the text, then the model's own greedy answer."""
        prompt = self.to_tokens(self.task.prompt(text))
        return torch.cat([prompt, self.generate_tokens(prompt, self.task.n_ctx - prompt.shape[1])], dim=1)
