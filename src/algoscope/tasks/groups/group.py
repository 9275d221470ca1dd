"""Composition in a finite group: the prompt `7*12=`, then the product as one token."""

from collections.abc import Mapping
from functools import cache
from typing import Literal

import numpy as np
import torch
from jaxtyping import Int
from pydantic import Field, model_validator
from torch import Tensor

from algoscope.tasks.base import Tokens
from algoscope.tasks.groups._relabelling import other_group, relabelled
from algoscope.tasks.groups.binary import Binary, Fit, Operand
from algoscope.tasks.groups.group_tables import KNOWN, LARGEST, Structure, check, named


class Group(Binary):
    """The product of two elements of a finite group, every element a token; in named groups 0 is the identity.

    Its classes: `commutes` (is a * b the same as b * a?) and `order` (which operand has the larger number?).

    Args:
        group: by name: `C12` (cyclic), `D5` (dihedral, 10 elements), `S4` and `A5` (symmetric, alternating), `Q8`, or a
            product such as `C2xC4`; any word where a table is given.
        table: the products by row, instead of a name.
        elements: the element of the name or table that each token stands for, where that is not its own number.
        form: the tokens of a prompt, `a+b=`, `ab=` or `ab`.
    Raises:
        ConfigError: for an unknown name, and for a table that is not a group.

    Example:
        >>> import algoscope as ag
        >>> task = ag.Group(group="S3")
        >>> task.order, task.expected("1*3"), task.expected("3*1")
        (6, '5', '2')
    """

    kind: Literal["group"] = "group"
    group: str = Field(default="S4", description=f"which group: {KNOWN}; any word where a table is given")
    table: tuple[tuple[int, ...], ...] | None = Field(default=None, description="products by row; None: by its name")
    elements: tuple[int, ...] | None = Field(default=None, description="the element of each token; None: its number")

    @model_validator(mode="after")
    def _is_a_group(self) -> "Group":
        if self.table is not None:
            if not 1 < len(self.table) <= LARGEST or {len(row) for row in self.table} != {len(self.table)}:
                raise ValueError(f"the table must be square, with 2 to {LARGEST:,} rows")
            check(np.array(self.table))
        elif len(self._by_element) < 2:
            raise ValueError(f"group {self.group!r} has a single element: choose a larger one")
        if self.elements is not None and sorted(self.elements) != list(range(len(self._by_element))):
            raise ValueError(f"elements must be the numbers 0 to {len(self._by_element) - 1} in some order, each once")
        return self

    @property
    def _products(self) -> Int[np.ndarray, "n n"]:
        return _table(self.group, self.table, self.elements)

    @property
    def _by_element(self) -> Int[np.ndarray, "n n"]:
        return _table(self.group, self.table, None)

    @property
    def order(self) -> int:
        return len(self._by_element)

    @property
    def sign(self) -> str:
        return "*"

    def product(self, first: Operand, second: Operand) -> Operand:
        return torch.from_numpy(self._products).to(first.device)[first, second]

    def structure(self) -> Structure | None:
        token = np.argsort(np.arange(self.order) if self.elements is None else self.elements)
        return Structure(self._by_element, token, token, token)

    def better_fit(self, answers: Int[np.ndarray, "n n"]) -> Fit | None:
        """The order of elements in which most answers are right, or the group that they form."""
        found = relabelled(self._by_element, answers)
        n = self.order
        if (found is not None and found[1] == n**2) or (other := other_group(answers)) is None:
            return found and Fit("with its elements in another order", {"elements": found[0].tolist()}, found[1])
        name, elements = other
        if elements is None:
            return Fit("as another group", {"table": answers.tolist(), "elements": None}, n**2)
        settings = {"group": name, "table": None, "elements": elements.tolist()}
        return Fit(f"as the group {name}", settings, n**2)

    # ------------------------------------------------------------------ classes

    def variables_of(self, tokens: Tokens) -> dict[str, Int[Tensor, "batch column"]]:
        """In one column: `commutes` (1: the operands give the same product in either order) and the `answer`."""
        first, second = self.operands(tokens)
        answer = self.product(first, second)
        commutes = (self.product(second, first) == answer).long()
        return {"commutes": commutes[:, None], "answer": answer[:, None]}

    @property
    def class_schemes(self) -> tuple[str, ...]:
        return ("commutes", "order")

    def class_names(self, by: str) -> Mapping[str, str]:
        """`commutes`: is a * b the same as b * a? `order`: which operand has the larger number?"""
        if by != "commutes":
            return super().class_names(by)
        return {"differs": "a * b is not b * a", "commutes": "a * b is b * a"}

    def class_of(self, tokens: Tokens, by: str) -> Int[Tensor, "batch"]:
        return self.variables_of(tokens)["commutes"][:, 0] if by == "commutes" else super().class_of(tokens, by)


@cache
def _table(
    name: str, table: tuple[tuple[int, ...], ...] | None, elements: tuple[int, ...] | None
) -> Int[np.ndarray, "n n"]:
    products = named(name) if table is None else np.array(table)
    return products if elements is None else np.argsort(elements)[products[np.ix_(elements, elements)]]
