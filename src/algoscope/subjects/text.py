"""Tokenizers: the vocabulary of a task, single letters, token numbers, or the tokenizer of another tool."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

from algoscope.core.errors import VocabularyError
from algoscope.tasks.base import Task

Texts = str | Sequence[str] | None


def texts_of(inputs: Texts) -> tuple[str, ...]:
    """Normalise an argument to a tuple of texts: a single string is one text, None is none."""
    if inputs is None:
        return ()
    return (inputs,) if isinstance(inputs, str) else tuple(inputs)


class Text(ABC):
    """The interface of a tokenizer. `end_token` is the end-of-sequence token, if there is one."""

    end_token: int | None

    @abstractmethod
    def encode(self, text: str) -> list[int]:
        """Token ids. Raises VocabularyError for characters outside the vocabulary."""

    @abstractmethod
    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids."""

    @abstractmethod
    def token(self, number: int) -> str:
        """The text of one token, for the axes of figures."""


class TaskText(Text):
    """The vocabulary of a task."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.end_token = task.vocabulary.index("<EOS>") if "<EOS>" in task.vocabulary else None

    def encode(self, text: str) -> list[int]:
        return self.task.encode(text)

    def decode(self, ids: Sequence[int]) -> str:
        return self.task.decode(ids)

    def token(self, number: int) -> str:
        return self.task.vocabulary[number]


class Letters(Text):
    """One token per character: token i is `alphabet[i]`."""

    def __init__(self, alphabet: Sequence[str]) -> None:
        self.alphabet = tuple(alphabet)
        self.end_token: int | None = None

    def encode(self, text: str) -> list[int]:
        for i, character in enumerate(text):
            if character not in self.alphabet:
                known = "".join(self.alphabet)
                raise VocabularyError(f"{character!r} at character {i + 1} of {text!r} is not in the alphabet {known}")
        return [self.alphabet.index(character) for character in text]

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(self.alphabet[i] for i in ids)

    def token(self, number: int) -> str:
        return self.alphabet[number]


class Numbers(Text):
    """Token ids as text, `12 5 7`: for a model without a tokenizer."""

    def __init__(self, d_vocab: int) -> None:
        self.d_vocab = d_vocab
        self.end_token: int | None = None

    def encode(self, text: str) -> list[int]:
        for word in text.split():
            if not (word.isascii() and word.isdecimal() and int(word) < self.d_vocab):
                raise VocabularyError(
                    f"{word!r} is not a token: this model has no tokenizer, so write token ids from 0 to "
                    f"{self.d_vocab - 1}, with spaces between them"
                )
        return [int(word) for word in text.split()]

    def decode(self, ids: Sequence[int]) -> str:
        return " ".join(map(str, ids))

    def token(self, number: int) -> str:
        return str(number)
