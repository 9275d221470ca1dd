"""A prompt: the tokens that a lens runs on for a given text."""

from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Int
from torch import Tensor


def labels_of(words: Sequence[str]) -> tuple[str, ...]:
    """Labels of positions for the axes of figures: `token_position`."""
    return tuple(f"{word}_{i}" for i, word in enumerate(words))


@dataclass(frozen=True, eq=False)
class Prompt:
    """The input of a model for one text (`Subject.lay_out`).

    With a task it is the prompt followed by the model's greedy answer, without the last token, which no prediction
    depends on. Without a task it is the text, and there is no right answer.
    """

    text: str  # as typed by the user
    tokens: Int[Tensor, "1 pos"]  # the input of the model
    words: tuple[str, ...]  # the text of each token
    first_answer: int  # the position that predicts the first answer token; of free text the last one
    answer: tuple[int, ...] | None  # the model's own greedy answer, to the end of the sequence; None for free text
    right: tuple[int, ...] | None  # the right answer, of the same length; None for free text
    got: str | None  # the model's answer as text, up to the end-of-sequence; None for free text
    expected: str | None  # the right answer as text; None for free text

    @property
    def labels(self) -> tuple[str, ...]:
        """Labels of positions for the axes of figures: `token_position`."""
        return labels_of(self.words)

    @property
    def is_right(self) -> bool | None:
        """Whether the model's answer is the right one; None for free text."""
        return None if self.right is None else self.answer == self.right
