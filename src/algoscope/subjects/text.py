"""How text becomes tokens and back: a task's vocabulary, single letters, numbers, or another tool's tokenizer."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

from algoscope.core.errors import VocabularyError
from algoscope.tasks.base import Task

Texts = str | Sequence[str] | None


def texts_of(inputs: Texts) -> tuple[str, ...]:
    """The texts that a lens is asked to look at: one text is a list of one, None is no text."""
    if inputs is None:
        return ()
    return (inputs,) if isinstance(inputs, str) else tuple(inputs)


class Text(ABC):
    """What a subject needs to read and to speak. `end_token` ends a sequence, where there is such a token."""

    end_token: int | None

    @abstractmethod
    def encode(self, text: str) -> list[int]:
        """Token numbers. Raises VocabularyError for what no token covers."""

    @abstractmethod
    def decode(self, ids: Sequence[int]) -> str:
        """The text of token numbers."""

    @abstractmethod
    def token(self, number: int) -> str:
        """One token as it is shown on an axis."""


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
    """One token a character: token i is `alphabet[i]`."""

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
    """Tokens written as their numbers, `12 5 7`: for a model that came without a tokenizer."""

    def __init__(self, d_vocab: int) -> None:
        self.d_vocab = d_vocab
        self.end_token: int | None = None

    def encode(self, text: str) -> list[int]:
        for word in text.split():
            if not (word.isascii() and word.isdecimal() and int(word) < self.d_vocab):
                raise VocabularyError(
                    f"{word!r} is not a token: this model has no tokenizer, so write token numbers from 0 to "
                    f"{self.d_vocab - 1}, with spaces between them"
                )
        return [int(word) for word in text.split()]

    def decode(self, ids: Sequence[int]) -> str:
        return " ".join(map(str, ids))

    def token(self, number: int) -> str:
        return str(number)
