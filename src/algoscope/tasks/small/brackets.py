"""Balanced brackets: `(())()?` asks for `y`, `())(()?` for `n`."""

import itertools
from collections.abc import Iterable, Mapping
from typing import Literal

from pydantic import Field

from algoscope.tasks._members import Prompt
from algoscope.tasks.base import Task


class Brackets(Task):
    """Is every bracket closed, and none before it is opened? Its classes say what is wrong."""

    kind: Literal["brackets"] = "brackets"
    length: int = Field(10, ge=2, le=20, description="brackets of a prompt")

    @property
    def vocabulary(self) -> tuple[str, ...]:
        return ("(", ")", "?", "n", "y")

    def prompts(self) -> Iterable[Prompt]:
        return ("".join(brackets) + "?" for brackets in itertools.product("()", repeat=self.length))

    def answer(self, prompt: Prompt) -> str:
        return "y" if self.classes(prompt)["fault"] == "none" else "n"

    def classes(self, prompt: Prompt) -> Mapping[str, object]:
        depths = list(itertools.accumulate({"(": 1, ")": -1}[bracket] for bracket in prompt[:-1]))
        return {"fault": "closed too early" if min(depths) < 0 else "not closed" if depths[-1] > 0 else "none"}

    def variables(self, prompt: Prompt) -> Mapping[str, object]:
        return {"opened": prompt.count("("), "closed": prompt.count(")")}
