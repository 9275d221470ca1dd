"""The interface of tasks. A task is a frozen value: its fields are its config, its methods give the right answers."""

import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, ClassVar

import torch
from jaxtyping import Int
from torch import Tensor

from algoscope.core.arguments import Natural, Share, checked_arguments
from algoscope.core.errors import TaskMismatchError, UnknownNameError, VocabularyError
from algoscope.core.sections import Section

Tokens = Int[Tensor, "batch pos"]
WRITTEN = frozenset(
    ["prompt", "sequence", "expected", "neighbour", "valid", "encode", "decode", "class_names", "of_width", "sample"]
)  # methods whose arguments a user writes; the others take tensors, and training calls them at every step
LISTED = 40  # longest vocabulary that an error lists in full


def spans(n: int) -> Iterator[range]:
    """The ranges of neighbours among n classes, but for the one that has them all."""
    for first in range(n):
        yield from (range(first, end) for end in range(first + 1, n + 1) if end - first < n)


class Task(Section, ABC):
    """A set of inputs, each with exactly one right answer.

    A sequence is the prompt, then the answer, then the end-of-sequence token where the task ends with one: `n_ctx`
    tokens. A model reads all but the last and predicts all but the first; its prediction at the positions
    `answer_slice` (from the last prompt token on) is its answer. Inputs are always whole sequences [batch pos], with
    their right answers.

    Example:
        >>> import algoscope as ag, torch
        >>> task = ag.Modular(p=5)
        >>> task.decode(task.at(torch.tensor([7]))[0].tolist())  # input number 7 of 25
        '1+2=3'
    """

    kind: str
    uniform: ClassVar[bool] = True  # is every input drawn with the same probability?
    whole_numbers: ClassVar[bool] = False  # is a run of digits one token, or each digit a token of its own?

    @classmethod
    def __pydantic_init_subclass__(cls, **options: Any) -> None:
        for name in WRITTEN:
            if not hasattr(method := getattr(cls, name), "checked"):
                setattr(cls, name, checked_arguments(method))

    # ------------------------------------------------------------------ sequences

    @property
    @abstractmethod
    def vocabulary(self) -> tuple[str, ...]:
        """The tokens in order: token i is written `vocabulary[i]`; `<EOS>`, where there is one, ends sequences."""

    @property
    @abstractmethod
    def n_ctx(self) -> int:
        """Tokens in one whole sequence."""

    @property
    @abstractmethod
    def prompt_length(self) -> int:
        """Tokens in the prompt."""

    @abstractmethod
    def prompt(self, text: str) -> str:
        """The prompt for a text that a user typed, such as `123+4`.

        Raises:
            VocabularyError: for a text that is no input, with an example of one.

        Example:
            >>> import algoscope as ag
            >>> ag.Addition(n_digits=3).prompt("123+4")
            '123+004='
        """

    @abstractmethod
    def completed(self, prompts: Int[Tensor, "batch read"]) -> Tokens:
        """Whole sequences that begin with these prompts: prompt, right answer, end.

        Args:
            prompts: token ids; tokens after the prompt are ignored.

        Example:
            >>> import algoscope as ag, torch
            >>> ag.Addition(n_digits=1).completed(torch.tensor([[7, 10, 5, 11]])).tolist()  # 7+5= and 21<EOS>
            [[7, 10, 5, 11, 2, 1, 12]]
        """

    def sequence(self, text: str) -> list[int]:
        """The whole sequence for a text, as token ids: prompt, right answer, end.

        Raises:
            VocabularyError: for a text that is no prompt of the task.

        Example:
            >>> import algoscope as ag
            >>> ag.Modular(p=5).sequence("1+2")
            [1, 5, 2, 6, 3]
        """
        return self.completed(torch.tensor([self.encode(self.prompt(text))]))[0].tolist()

    def expected(self, text: str) -> str:
        """The right answer to a text, up to the end of the sequence.

        Example:
            >>> import algoscope as ag
            >>> ag.Addition(n_digits=3).expected("999+1")
            '0001<EOS>'
        """
        return self.decode(self.sequence(text)[self.prompt_length :])

    @property
    def d_vocab(self) -> int:
        """The number of tokens in the vocabulary."""
        return len(self.vocabulary)

    @property
    def answer_slice(self) -> slice:
        """Positions of the model's input at which the logits give the answer."""
        return slice(self.prompt_length - 1, self.n_ctx - 1)

    @property
    def answer_names(self) -> tuple[str, ...]:
        """A name for each token of an answer, in the order of writing; numbered where the task has no names."""
        ends = "<EOS>" in self.used_tokens
        numbers = [f"token {i + 1}" for i in range(self.n_ctx - self.prompt_length - ends)]
        return (*numbers, "end") if ends else tuple(numbers)

    @property
    @abstractmethod
    def parts(self) -> Mapping[str, slice]:
        """Named ranges of positions, in order; together they cover what a model reads."""

    @property
    def sources(self) -> Mapping[str, Mapping[int, tuple[int, ...]]]:
        """The positions that determine the answer, by name: for each position at which an answer token is predicted,
        the positions of the tokens that determine it. Empty where the task names none.
        """
        return {}

    @property
    def significance(self) -> tuple[int, ...] | None:
        """The significance of the digit at each position of a sequence: 1 for the units, 2 for the tens and so on; 0
        for tokens that are no digit of a number. None where the task has no digits.
        """
        return None

    @property
    def width(self) -> int | None:
        """The number of digits of its inputs; None for a task without a width."""
        return None

    def of_width(self, width: int) -> "Task":
        """The same task at another width, such as sums of more digits.

        Raises:
            TaskMismatchError: for a task that has no width.

        Example:
            >>> import algoscope as ag
            >>> ag.Addition(n_digits=3).of_width(5).prompt("1+2")
            '00001+00002='
        """
        raise TaskMismatchError(f"the task {self.kind} has no width")

    @property
    @abstractmethod
    def ordinals(self) -> tuple[str, ...]:
        """The tokens that represent quantities, smallest first."""

    @property
    @abstractmethod
    def used_tokens(self) -> tuple[str, ...]:
        """The tokens that occur in sequences, in the order of the vocabulary."""

    # ------------------------------------------------------------------ inputs

    @property
    @abstractmethod
    def domain_size(self) -> int:
        """The number of different inputs."""

    @abstractmethod
    def at(self, index: Int[Tensor, "batch"]) -> Tokens:
        """The inputs with these indices in the domain (lexicographic order), with their answers.

        Example:
            >>> import algoscope as ag, torch
            >>> task = ag.Addition(n_digits=1)
            >>> task.at(torch.arange(task.domain_size)).shape
            torch.Size([100, 7])
        """

    @abstractmethod
    def sample(self, n: Natural, generator: torch.Generator, hard_share: Share = 0.0) -> Tokens:
        """Random inputs with their answers, on the generator's device.

        Args:
            n: number of inputs.
            generator: the random generator.
            hard_share: share of draws from the rare and difficult inputs that the task defines; the rest is uniform.

        Example:
            >>> import algoscope as ag, torch
            >>> ag.Reversal(length=3).sample(4, torch.Generator().manual_seed(0)).shape
            torch.Size([4, 8])
        """

    @abstractmethod
    def keys(self, tokens: Tokens) -> Int[Tensor, "batch"]:
        """One integer per input: inputs are equal where their keys are."""

    @abstractmethod
    def edge_inputs(self) -> Tokens:
        """Inputs at the edges of the domain and those that people try first, with their answers."""

    def neighbour(self, text: str) -> str:
        """An input that differs in a single token and has another answer, for use as the corrupt input of patching.

        Later tokens are tried first.

        Raises:
            VocabularyError: where no such input exists.

        Example:
            >>> import algoscope as ag
            >>> ag.Addition(n_digits=3).neighbour("123+456")
            '123+450='
        """
        n, sequence = self.prompt_length, self.sequence(text)
        for pos in reversed(range(n)):
            for token in self.ordinals:
                other = [*sequence[:pos], self.vocabulary.index(token), *sequence[pos + 1 : n]]
                written = self.decode(other)
                if other != sequence[:n] and self.valid(written) and self.sequence(written)[n:] != sequence[n:]:
                    return written
        raise VocabularyError(f"no input of {self.kind} differs from {text!r} in one token and in its answer")

    def valid(self, text: str) -> bool:
        """Whether a text is a prompt of the task.

        Example:
            >>> import algoscope as ag
            >>> ag.Addition(n_digits=3).valid("1234+5")
            False
        """
        try:
            self.prompt(text)
        except VocabularyError:
            return False
        return True

    # ------------------------------------------------------------------ truth

    @property
    @abstractmethod
    def class_schemes(self) -> tuple[str, ...]:
        """The schemes that divide inputs into classes; the first is the default."""

    @abstractmethod
    def class_names(self, by: str) -> Mapping[str, str]:
        """The classes of a scheme, short name to description, in the order of the numbers that `class_of` gives.

        Raises:
            UnknownNameError: for a scheme that is not in `class_schemes`.

        Example:
            >>> import algoscope as ag
            >>> ag.Reversal(length=3).class_names("palindrome")
            {'other': 'reads differently backwards', 'palindrome': 'reads the same backwards'}
        """

    def class_phrases(self, by: str) -> Iterator[tuple[str, Sequence[int]]]:
        """Sets of classes that a few words describe, with these words, which follow "where".

        A class without a phrase of its own is described by `class_names`.

        Example:
            >>> import algoscope as ag
            >>> {tuple(kinds): words for words, kinds in ag.Addition(n_digits=5).class_phrases("chain")}[3, 4, 5]
            'a carry runs through two or more columns of nine'
        """
        self._check_scheme(by)
        yield from ()

    @abstractmethod
    def class_of(self, tokens: Tokens, by: str) -> Int[Tensor, "batch"]:
        """The class of each input: an index into `class_names(by)`.

        Example:
            >>> import algoscope as ag
            >>> task = ag.Addition(n_digits=3)
            >>> task.class_of(task.edge_inputs(), "chain").tolist()  # 999+1 has the longest chain
            [0, 3, 0, 1, 1, 0]
        """

    def _check_scheme(self, by: str) -> None:
        if by not in self.class_schemes:
            raise UnknownNameError("class scheme", by, self.class_schemes)

    @abstractmethod
    def variables_of(self, tokens: Tokens) -> dict[str, Int[Tensor, "batch column"]]:
        """Intermediate variables of an algorithm for the task, by name: candidates to look for inside a model.

        Example:
            >>> import algoscope as ag, torch
            >>> task = ag.Addition(n_digits=3)
            >>> task.variables_of(torch.tensor([task.sequence("199+1")]))["carry"].tolist()  # units, tens, hundreds
            [[1, 1, 0]]
        """

    # ------------------------------------------------------------------ text

    @cached_property
    def token_pattern(self) -> re.Pattern[str]:
        """The next token of a text."""
        longest_first = sorted(self.vocabulary, key=len, reverse=True)
        ends = {token: r"(?![0-9])" if self.whole_numbers and token.isdecimal() else "" for token in longest_first}
        return re.compile("|".join(re.escape(token) + end for token, end in ends.items()))

    def encode(self, text: str) -> list[int]:
        """Token ids of a text written in the vocabulary.

        Raises:
            VocabularyError: for a character (or a whole number) that no token covers, and for a text longer than the
                context.

        Example:
            >>> import algoscope as ag
            >>> ag.Addition(n_digits=3).encode("12+<EOS>")
            [1, 2, 10, 12]
        """
        ids, at = [], 0
        while at < len(text):
            match = self.token_pattern.match(text, at)
            if match is None:
                unknown = re.findall("[0-9]+|." if self.whole_numbers else ".", text[at:], flags=re.DOTALL)[0]
                raise VocabularyError(
                    f"{unknown!r} at character {at + 1} of {text!r} is not in the vocabulary of {self.kind}: "
                    f"{' '.join(self.listed)}"
                )
            ids.append(self.vocabulary.index(match.group()))
            at = match.end()
        if len(ids) > self.n_ctx:
            raise VocabularyError(f"{text!r} has {len(ids)} tokens; the context of {self.kind} holds {self.n_ctx}")
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids, special tokens included.

        Example:
            >>> import algoscope as ag
            >>> ag.Addition(n_digits=3).decode([1, 2, 10, 12])
            '12+<EOS>'
        """
        return "".join(map(self.token, ids))

    def token(self, number: int) -> str:
        """A token as it is written; one beyond the vocabulary, which a model with more logits may give, as `<59>`.

        Example:
            >>> import algoscope as ag
            >>> ag.Modular(p=5).token(4), ag.Modular(p=5).token(59)
            ('4', '<59>')
        """
        return self.vocabulary[number] if number < len(self.vocabulary) else f"<{number}>"

    @property
    def listed(self) -> tuple[str, ...]:
        """The vocabulary for display; of a long one the first and last tokens."""
        known = self.vocabulary
        return known if len(known) <= LISTED else (*known[: LISTED // 4], "...", *known[-LISTED // 4 :])
