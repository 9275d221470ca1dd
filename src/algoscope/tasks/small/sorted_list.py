"""Sorting: `3142>` asks for `1234`."""

import itertools
from collections.abc import Iterable
from typing import Literal

from pydantic import Field

from algoscope.tasks._members import Prompt
from algoscope.tasks.base import Task


class SortedList(Task):
    """Digits in ascending order."""

    kind: Literal["sorted_list"] = "sorted_list"
    length: int = Field(4, ge=1, le=12, description="digits of a list")
    n: int = Field(8, ge=2, le=10, description="digits are 0 to n - 1")

    @property
    def vocabulary(self) -> tuple[str, ...]:
        return (*"0123456789"[: self.n], ">")

    def prompts(self) -> Iterable[Prompt]:
        return ("".join(digits) + ">" for digits in itertools.product(self.vocabulary[:-1], repeat=self.length))

    def answer(self, prompt: Prompt) -> str:
        return "".join(sorted(prompt[:-1]))
