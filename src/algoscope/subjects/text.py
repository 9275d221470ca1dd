"""Tokenizers: the vocabulary of a task, single letters, token ids; those of other tools are `hf_tokenizer`."""

import json
import unicodedata
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Annotated

from algoscope.core.arguments import Form
from algoscope.core.errors import VocabularyError
from algoscope.tasks.base import Task

Texts = Annotated[str | Sequence[str] | None, Form("a text, or a list of texts")]
Token = Annotated[str | int, Form("one token: a text that is one token, or its id")]
"""One token: a text that is one token, or its id."""

ESCAPED = frozenset("nrtxuU\\")  # what follows the backslash of an escape
BLANK = frozenset(  # printable by their category, yet nothing of them is seen: fillers, joiners, variation selectors
    "\u034f\u115f\u1160\u17b4\u17b5\u180b\u180c\u180d\u180f\u2800\u3164\uffa0"
).union(map(chr, range(0xFE00, 0xFE10)), map(chr, range(0xE0100, 0xE01F0)))


def texts_of(inputs: Texts) -> tuple[str, ...]:
    """Normalise an argument to a tuple of texts: a single string is one text, None is none."""
    if inputs is None:
        return ()
    return (inputs,) if isinstance(inputs, str) else tuple(inputs)


def as_label(text: str) -> str:
    """A text on one line that shows every character: those that cannot be seen are escaped, as Python writes them.

    Different texts stay different: a backslash that would look like the start of an escape is doubled.
    """
    if text.isascii() and text.isprintable() and "\\" not in text:
        return text
    shown = []
    for i, character in enumerate(text):
        joins_before = i == 0 and unicodedata.category(character).startswith("M")  # as an accent does
        if character == "\\":
            shown.append("\\\\" if text[i + 1 : i + 2] in ESCAPED else "\\")
        elif character.isprintable() and character not in BLANK and not joins_before:
            shown.append(character)
        else:
            shown.append(ascii(character)[1:-1])
    return "".join(shown)


def distinct(texts: Iterable[str]) -> tuple[str, ...]:
    """Labels of tokens 0, 1, ...: visible, none empty, none twice; where two are alike the id is added to the later."""
    labels: dict[str, int] = {}
    for number, text in enumerate(texts):
        label = as_label(text) or f"<{number}>"
        while label in labels:
            label += f"<{number}>"
        labels[label] = number
    return tuple(labels)


class Text(ABC):
    """The interface of a tokenizer.

    `end_tokens` end a generated text. `special` are the tokens that stand for no text, such as the end of a sequence.
    """

    end_tokens: frozenset[int] = frozenset()
    special: frozenset[int] = frozenset()

    @abstractmethod
    def encode(self, text: str) -> list[int]:
        """Token ids of a prompt, after the tokens that stand before every text, such as BOS; of an empty text those
        alone. Raises VocabularyError for characters outside the vocabulary.
        """

    @abstractmethod
    def decode(self, ids: Sequence[int], after: Sequence[int] = ()) -> str:
        """The text of token ids, or how they continue the text of the ids `after`."""

    @cached_property
    @abstractmethod
    def labels(self) -> tuple[str, ...]:
        """The label of each token: one line, not empty, unlike that of any other."""

    def token(self, number: int) -> str:
        """The label of one token, `<471>` for one beyond the tokenizer."""
        return self.labels[number] if number < len(self.labels) else f"<{number}>"

    def files(self, d_vocab: int) -> dict[str, bytes | str]:
        """The tokenizer as files that `transformers` reads, by name, for a model of `d_vocab` tokens; empty where texts
        are token ids.
        """
        return {}

    def find(self, text: str) -> list[int]:
        """The one token of this label or text; where there is none, all tokens of the text."""
        return [self.labels.index(text)] if text in self.labels else self.encode(text)


def word_level(
    vocabulary: Sequence[str], pattern: str | None, ends: frozenset[int], d_vocab: int
) -> dict[str, bytes | str]:
    """The files of a tokenizer of Hugging Face that cuts a text at every match of a pattern and joins without spaces;
    where the pattern is None, it cuts at spaces and joins with them.

    What is not in the vocabulary becomes a token that the model does not have, so that it is an error there.
    """
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    by_pattern = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    unknown = "<UNKNOWN>"
    words = {word: i for i, word in enumerate(vocabulary)} | {unknown: d_vocab}
    tokenizer = {
        "version": "1.0",
        "added_tokens": [{"id": end, "content": vocabulary[end], **flags} for end in sorted(ends)],
        "pre_tokenizer": {"type": "WhitespaceSplit"} if pattern is None else by_pattern,
        "decoder": None if pattern is None else {"type": "Fuse"},
        "model": {"type": "WordLevel", "vocab": words, "unk_token": unknown},
    }
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "unk_token": unknown,
        "eos_token": next((vocabulary[end] for end in ends), None),
    }
    return {
        "tokenizer.json": json.dumps(tokenizer, ensure_ascii=False),
        "tokenizer_config.json": json.dumps(config, ensure_ascii=False),
    }


class TaskText(Text):
    """The vocabulary of a task."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.end_tokens = self.special = frozenset(i for i, token in enumerate(task.vocabulary) if token == "<EOS>")

    @cached_property
    def labels(self) -> tuple[str, ...]:
        return distinct(self.task.vocabulary)

    def encode(self, text: str) -> list[int]:
        return self.task.encode(text)

    def decode(self, ids: Sequence[int], after: Sequence[int] = ()) -> str:
        return self.task.decode(ids)

    def files(self, d_vocab: int) -> dict[str, bytes | str]:
        pattern = None if self.task.joint else self.task.token_pattern.pattern
        return word_level(self.task.vocabulary, pattern, self.end_tokens, d_vocab)


class Letters(Text):
    """One token per character: token i is `alphabet[i]`."""

    def __init__(self, alphabet: Sequence[str]) -> None:
        self.alphabet = tuple(alphabet)

    @cached_property
    def labels(self) -> tuple[str, ...]:
        return distinct(self.alphabet)

    def encode(self, text: str) -> list[int]:
        for i, character in enumerate(text):
            if character not in self.alphabet:
                known = "".join(self.alphabet)
                raise VocabularyError(f"{character!r} at character {i + 1} of {text!r} is not in the alphabet {known}")
        return [self.alphabet.index(character) for character in text]

    def decode(self, ids: Sequence[int], after: Sequence[int] = ()) -> str:
        return "".join(self.alphabet[i] if i < len(self.alphabet) else self.token(i) for i in ids)

    def files(self, d_vocab: int) -> dict[str, bytes | str]:
        return word_level(self.alphabet, ".", self.end_tokens, d_vocab)


class Numbers(Text):
    """Token ids as text, `12 5 7`: for a model without a tokenizer, or with one that could not be read (`why`)."""

    def __init__(self, d_vocab: int, why: str = "this model has no tokenizer", ends: Iterable[int] = ()) -> None:
        self.d_vocab, self.why = d_vocab, why
        self.end_tokens = self.special = frozenset(ends)

    @cached_property
    def labels(self) -> tuple[str, ...]:
        return tuple(map(str, range(self.d_vocab)))

    def encode(self, text: str) -> list[int]:
        digits = len(str(self.d_vocab))
        for word in text.split():
            plain = word.isascii() and word.isdecimal() and len(word.lstrip("0")) <= digits
            if not (plain and int(word) < self.d_vocab):
                raise VocabularyError(
                    f"{word!r} is not a token: {self.why}, so write token ids from 0 to {self.d_vocab - 1}, with "
                    "spaces between them"
                )
        return [int(word) for word in text.split()]

    def decode(self, ids: Sequence[int], after: Sequence[int] = ()) -> str:
        return " ".join(map(str, ids))
