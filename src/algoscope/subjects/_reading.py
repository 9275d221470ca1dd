"""Texts to tokens and back: the part of a subject that needs its tokenizer."""

from collections.abc import Mapping
from typing import Annotated, Any, SupportsIndex, overload

import torch
import torch.nn.functional as F
from jaxtyping import Bool
from torch import Tensor

from algoscope.core.arguments import MOST, Range, checked_arguments
from algoscope.core.errors import TaskMismatchError, VocabularyError, shown, some_of
from algoscope.subjects._arguments import Keys, TokenIds, token_ids
from algoscope.subjects._generating import Generator
from algoscope.subjects._running import Edits
from algoscope.subjects.cache import ActivationCache
from algoscope.subjects.prompt import labels_of
from algoscope.subjects.text import Text, Texts, Token, texts_of
from algoscope.tasks.base import Task, Tokens

NewTokens = Annotated[int | None, Range(0, MOST)]
FREE_TOKENS = 20  # default number of tokens that a model of free text generates


@checked_arguments
class Reader(Generator):
    """A model with its tokenizer."""

    text: Text
    _task: Task | None

    @checked_arguments
    def to_tokens(self, text: Texts) -> Tokens:
        """Token ids [batch pos] of one text or of several of equal length, as the model's tokenizer makes them.

        What the tokenizer puts before every text (BOS) is there, what it puts after it (EOS) is not, as predictions are
        read at the end of a text. No chat template is applied: write its text, or give ids to `run`.

        Raises:
            VocabularyError: for text outside the vocabulary.
            TaskMismatchError: for texts of different lengths (see `pad`).

        Example:
            >>> import algoscope as ag
            >>> ag.open("planted:carry-adder").to_tokens("12+3").tolist()
            [[1, 2, 10, 3]]
        """
        texts = texts_of(text)
        rows = [self.text.encode(one) for one in texts]
        if not texts:
            raise VocabularyError("there is no text: give one, or several")
        if len({len(row) for row in rows}) > 1:
            raise TaskMismatchError(f"the texts have different lengths in tokens: {[len(row) for row in rows]}")
        if not rows[0]:
            raise VocabularyError(f"there are no tokens in {texts[0]!r}: write a text with some")
        return torch.tensor(rows, device=self.device)

    @checked_arguments
    def pad(self, texts: Texts) -> tuple[Tokens, Bool[Tensor, "batch pos"]]:
        """Token ids of texts of any lengths, padded on the left, and the mask that is false at the padding.

        Example:
            >>> import algoscope as ag
            >>> tokens, mask = ag.open("planted:induction").pad(["abc", "a"])
            >>> tokens.tolist(), mask.tolist()
            ([[0, 1, 2], [0, 0, 0]], [[True, True, True], [False, False, True]])
        """
        rows = [self.to_tokens(text)[0] for text in texts_of(texts) or self.to_tokens(texts)]
        longest = max(map(len, rows))
        tokens = torch.stack([F.pad(row, (longest - len(row), 0)) for row in rows])
        length = torch.tensor([[len(row)] for row in rows], device=self.device)
        return tokens, torch.arange(longest, device=self.device) >= longest - length

    def to_string(self, tokens: TokenIds | SupportsIndex) -> str:
        """The text of the token ids of one input [pos].

        Example:
            >>> import algoscope as ag, torch
            >>> ag.open("planted:carry-adder").to_string(torch.tensor([1, 2, 10, 3, 12]))
            '12+3<EOS>'
        """
        return self.text.decode(self._row(tokens))

    def to_str_tokens(self, tokens: str | TokenIds | SupportsIndex) -> list[str]:
        """The label of each token of one input, a text or token ids [pos]: its text, on one line, unlike any other's.

        Characters that cannot be seen are escaped (`\\n`), bytes that are no character are `<0xE6>`, and a token that
        the tokenizer does not know is `<471>`.

        Example:
            >>> import algoscope as ag
            >>> ag.open("planted:carry-adder").to_str_tokens([1, 10, 12])
            ['1', '+', '<EOS>']
        """
        return [self.text.token(i) for i in self._row(self.to_tokens(tokens) if isinstance(tokens, str) else tokens)]

    def _row(self, tokens: Any) -> list[int]:
        """The token ids of one input. Raises VocabularyError for several, and for ids outside the vocabulary."""
        try:
            if len(tokens) == 0 and not isinstance(tokens, str | Mapping):
                return []
        except TypeError:  # a single one
            tokens = tokens.reshape(1) if isinstance(tokens, Tensor) else [tokens]
        ids = token_ids(tokens, torch.device("cpu"))
        if len(ids) != 1:
            raise VocabularyError(f"token ids [pos] of one input are needed, not {list(ids.shape)}: give one row")
        for number in (int(ids.min()), int(ids.max())):
            if not 0 <= number < self._sizes.d_vocab:
                raise VocabularyError(f"token {number} is outside the {self._sizes.d_vocab} tokens of {self.name}")
        return [int(number) for number in ids[0].tolist()]

    @checked_arguments
    def to_single_token(self, token: Token) -> int:
        """The id of one token, given as its text (`" Paris"`), its label, or its id.

        Of a Hugging Face tokenizer also as its piece (`▁Paris`, `<0x0A>`), or as `<471>`. What the tokenizer puts
        before or after a text is left off.

        Raises:
            VocabularyError: for a text that is not one token, and for an id outside the vocabulary.

        Example:
            >>> import algoscope as ag
            >>> model = ag.open("planted:carry-adder")
            >>> model.to_single_token("+"), model.to_single_token(10)
            (10, 10)
        """
        ids = self.text.find(token) if isinstance(token, str) else [token]
        if len(ids) != 1:
            labels = [self.text.token(i) for i in ids]
            raise VocabularyError(
                f"{shown(token)} is {len(ids)} tokens of {self.name}, not one: {some_of(map(repr, labels))}"
            )
        if not 0 <= ids[0] < self._sizes.n_logits:
            raise VocabularyError(f"token {ids[0]} is outside the {self._sizes.n_logits} tokens of {self.name}")
        return ids[0]

    def token_labels(self, tokens: str | TokenIds | SupportsIndex) -> tuple[str, ...]:
        """Labels of positions for the axes of figures: `token_position`.

        Example:
            >>> import algoscope as ag
            >>> model = ag.open("planted:induction")
            >>> model.token_labels(model.to_tokens("ab")[0])
            ('a_0', 'b_1')
        """
        return labels_of(self.to_str_tokens(tokens))

    @overload
    def generate(self, text: str, n_new: int | None = ..., *, use_cache: bool = ..., edits: Edits = ...) -> str: ...

    @overload
    def generate(
        self, text: str, n_new: int | None = ..., *, use_cache: bool = ..., edits: Edits = ..., record: Keys
    ) -> tuple[str, ActivationCache]: ...

    @checked_arguments
    def generate(
        self,
        text: str,
        n_new: NewTokens = None,
        *,
        use_cache: bool = True,
        edits: Edits = (),
        record: Keys | None = None,
    ) -> str | tuple[str, ActivationCache]:
        """The model's continuation of a prompt by greedy decoding, where wanted steered by edits, with its activations.

        Edits hold in every forward pass; their positions count over prompt and new tokens (see `generate_tokens`).

        Args:
            text: an input of the task (`123+456`); without a task, any text.
            n_new: number of tokens; None: with a task up to and including the end-of-sequence, for free text 20, or as
                many as the context holds.
            use_cache: use a key-value cache; false recomputes every position, with the same result.
            edits: interventions, as for `run`; one or several.
            record: sites to record, as for `run`; None: only the text is returned.
        Returns:
            The text; with `record` also the activations of the prompt and all new tokens.
        Raises:
            VocabularyError: for a text that is no input of the task, or that has characters outside the vocabulary.
            EditError: for an edit that cannot be applied to the sequence.

        Example:
            >>> import algoscope as ag
            >>> ag.open("planted:carry-adder").generate("999+1")
            '0001<EOS>'
            >>> model = ag.open("planted:induction")
            >>> model.generate("abcab", 3, edits=ag.Zero(("z", 1), head=0)), model.generate("abcab", 3)
            ('aaa', 'cab')
        """
        if record is None:
            return self.generate_many([text], n_new, use_cache=use_cache, edits=edits)[0]
        texts, cache = self.generate_many([text], n_new, use_cache=use_cache, edits=edits, record=record)
        return texts[0], cache

    @overload
    def generate_many(
        self, texts: Texts, n_new: int | None = ..., *, use_cache: bool = ..., edits: Edits = ...
    ) -> list[str]: ...

    @overload
    def generate_many(
        self, texts: Texts, n_new: int | None = ..., *, use_cache: bool = ..., edits: Edits = ..., record: Keys
    ) -> tuple[list[str], ActivationCache]: ...

    @checked_arguments
    def generate_many(
        self,
        texts: Texts,
        n_new: NewTokens = None,
        *,
        use_cache: bool = True,
        edits: Edits = (),
        record: Keys | None = None,
    ) -> list[str] | tuple[list[str], ActivationCache]:
        """Like `generate`, for prompts of any lengths in one batch, shorter ones padded on the left; positions of edits
        and of recorded activations count over the padded sequences.

        Example:
            >>> import algoscope as ag
            >>> ag.open("planted:induction").generate_many(["abcab", "xyx"], 2)
            ['ca', 'yx']
        """
        task = self._task
        prompts, mask = self.pad([task.prompt(text) if task else text for text in texts_of(texts)])
        room = self._sizes.n_ctx + (record is None)
        if n_new is None:
            end = task.n_ctx if task else min(room, prompts.shape[1] + FREE_TOKENS)
            n_new = end - prompts.shape[1]
        cache, padding = None, None if mask.all() else mask
        if record is None:
            new = self.generate_tokens(prompts, n_new, use_cache=use_cache, attention_mask=padding, edits=edits)
        else:
            new, cache = self.generate_tokens(
                prompts, n_new, use_cache=use_cache, attention_mask=padding, edits=edits, record=record
            )
        continuations = [
            self.text.decode(self._until_end(row), after=prompt[own].tolist())
            for prompt, own, row in zip(prompts, mask, new.tolist(), strict=True)
        ]
        return continuations if cache is None else (continuations, cache)

    def _until_end(self, row: list[int]) -> list[int]:
        ends = (i for i, number in enumerate(row, start=1) if number in self.text.end_tokens)
        return row[: next(ends, None)]
