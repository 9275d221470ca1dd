"""A prompt, laid out once: what a lens looks at when it is given a text."""

from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Int
from torch import Tensor


def labels_of(words: Sequence[str]) -> tuple[str, ...]:
    """What axes of figures say of a sequence of tokens: `token_position`."""
    return tuple(f"{word}_{i}" for i, word in enumerate(words))


@dataclass(frozen=True, eq=False)
class Prompt:
    """One text as a model reads it (`Subject.lay_out`).

    With a task, the model reads the prompt that the text means and then its own greedy answer, but for the last token
    of that, which is never read. Without one it reads the text, and there is no answer that is right.
    """

    text: str  # as it was typed
    tokens: Int[Tensor, "1 pos"]  # what the model reads
    words: tuple[str, ...]  # the text of each token
    first_answer: int  # the position that predicts the first answer token; of free text the last one
    answer: tuple[int, ...] | None  # the model's own greedy answer, to the end of the sequence; None for free text
    right: tuple[int, ...] | None  # the right answer, as long; None for free text
    got: str | None  # the model's answer as text, up to the end-of-sequence; None for free text
    expected: str | None  # the right answer as text; None for free text

    @property
    def labels(self) -> tuple[str, ...]:
        """What axes of figures say: `token_position`."""
        return labels_of(self.words)

    @property
    def is_right(self) -> bool | None:
        """Whether the model's answer is the right one; None for free text."""
        return None if self.right is None else self.answer == self.right
