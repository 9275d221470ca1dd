"""Palindromes: `abba?` asks for `y`, `abab?` for `n`."""

import itertools
from collections.abc import Iterable
from typing import Literal

from pydantic import Field

from algoscope.tasks._members import Prompt
from algoscope.tasks.base import Task


class Palindromes(Task):
    """Does a word read the same backwards? The answer is y or n."""

    kind: Literal["palindromes"] = "palindromes"
    length: int = Field(8, ge=2, le=20, description="letters of a word")
    letters: str = Field("ab", min_length=2, max_length=26, description="the alphabet")

    @property
    def vocabulary(self) -> tuple[str, ...]:
        return (*self.letters, "?", "n", "y")

    def prompts(self) -> Iterable[Prompt]:
        return ("".join(word) + "?" for word in itertools.product(self.letters, repeat=self.length))

    def answer(self, prompt: Prompt) -> str:
        word = prompt[:-1]
        return "y" if word == word[::-1] else "n"
