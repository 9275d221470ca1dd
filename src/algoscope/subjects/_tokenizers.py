"""A tokenizer that a user gives, in any form."""

from collections.abc import Iterable, Sequence
from typing import Any

from algoscope.core.registry import Entry, Table
from algoscope.subjects.text import Letters, Text

READERS = Table(
    "kind of tokenizer",
    {"transformers": Entry("algoscope.subjects.hf_tokenizer:tokenizer_to_text", "of transformers or tokenizers")},
)


def text_of(tokenizer: Any, d_vocab: int, ends: Iterable[int] | None = None) -> Text | None:
    """A tokenizer in memory: ours, one of `transformers` or `tokenizers`, or the character of each token in order.
    `ends`: the model's end tokens; None: those that the tokenizer names.

    Raises SubjectError for anything else.
    """
    if tokenizer is None or isinstance(tokenizer, Text):
        return tokenizer
    characters = list(tokenizer) if isinstance(tokenizer, Sequence) else []
    if characters and all(isinstance(one, str) and len(one) == 1 for one in characters):
        return Letters(characters)
    text: Text = READERS.load("transformers")(tokenizer, d_vocab, ends)
    return text
