"""The largest of some numbers: `3 11 7` asks for `11`."""

import itertools
from collections.abc import Iterable, Mapping
from typing import Literal

from pydantic import Field

from algoscope.tasks._members import Prompt
from algoscope.tasks.base import Task


class MaxOf(Task):
    """The largest of k numbers below n, each one token. Its classes say how often the largest occurs."""

    kind: Literal["max_of"] = "max_of"
    k: int = Field(3, ge=1, le=16, description="numbers in a prompt")
    n: int = Field(16, ge=2, le=1_000, description="numbers are 0 to n - 1")

    @property
    def vocabulary(self) -> tuple[str, ...]:
        return tuple(str(number) for number in range(self.n))

    def prompts(self) -> Iterable[Prompt]:
        return itertools.product(self.vocabulary, repeat=self.k)

    def answer(self, prompt: Prompt) -> list[str]:
        return [max(prompt, key=int)]

    def classes(self, prompt: Prompt) -> Mapping[str, object]:
        return {"largest": f"occurs {prompt.count(max(prompt, key=int))} times"}
