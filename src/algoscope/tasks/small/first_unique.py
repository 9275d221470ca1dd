"""The first letter that occurs once: `abcab?` asks for `c`, `abba?` for `-`."""

import itertools
from collections.abc import Iterable
from typing import Literal

from pydantic import Field

from algoscope.tasks._members import Prompt
from algoscope.tasks.base import Task


class FirstUnique(Task):
    """The first letter of a word that occurs in it only once; - where every letter occurs again."""

    kind: Literal["first_unique"] = "first_unique"
    length: int = Field(5, ge=1, le=16, description="letters of a word")
    letters: str = Field("abcd", min_length=2, max_length=26, description="the alphabet")

    @property
    def vocabulary(self) -> tuple[str, ...]:
        return (*self.letters, "-", "?")

    def prompts(self) -> Iterable[Prompt]:
        return ("".join(word) + "?" for word in itertools.product(self.letters, repeat=self.length))

    def answer(self, prompt: Prompt) -> str:
        return next((letter for letter in prompt[:-1] if prompt.count(letter) == 1), "-")
