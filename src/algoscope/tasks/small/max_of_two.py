"""The larger of two numbers: `12 57` asks for `57`."""

import itertools
from collections.abc import Iterable
from typing import Literal

from algoscope.tasks._members import Prompt
from algoscope.tasks.base import Task


class MaxOfTwo(Task):
    """The larger of two numbers below 64, each one token."""

    kind: Literal["max_of_two"] = "max_of_two"

    @property
    def vocabulary(self) -> tuple[str, ...]:
        return tuple(str(number) for number in range(64))

    def prompts(self) -> Iterable[Prompt]:
        return itertools.product(self.vocabulary, repeat=2)

    def answer(self, prompt: Prompt) -> list[str]:
        return [max(prompt, key=int)]
