"""Running sums modulo m: `3141>` asks for `3489`."""

import itertools
from collections.abc import Iterable
from typing import Literal

from pydantic import Field

from algoscope.tasks._members import Prompt
from algoscope.tasks.base import Task


class CumulativeSum(Task):
    """The sums of the first one, two, three ... digits, each modulo m."""

    kind: Literal["cumulative_sum"] = "cumulative_sum"
    length: int = Field(4, ge=1, le=12, description="digits of a list")
    m: int = Field(8, ge=2, le=10, description="the modulus; digits are 0 to m - 1")

    @property
    def vocabulary(self) -> tuple[str, ...]:
        return (*"0123456789"[: self.m], ">")

    def prompts(self) -> Iterable[Prompt]:
        return ("".join(digits) + ">" for digits in itertools.product(self.vocabulary[:-1], repeat=self.length))

    def answer(self, prompt: Prompt) -> str:
        return "".join(str(total % self.m) for total in itertools.accumulate(map(int, prompt[:-1])))
