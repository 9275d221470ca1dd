"""Arithmetic modulo p: the prompt `57+80=`, then the answer as one token, `24`. Each number 0 to p - 1 is one token."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

import numpy as np
from jaxtyping import Int
from pydantic import Field
from torch import Tensor

from algoscope.tasks.base import Tokens
from algoscope.tasks.groups._relabelling import LEAST, relabelled
from algoscope.tasks.groups.binary import Binary, Fit, Operand
from algoscope.tasks.groups.group_tables import Structure, cyclic, logarithms


class Modular(Binary):
    """a + b, a - b or a * b, modulo p. Every number is one token, and so is the answer.

    Its classes: `wrap` (is the result reduced modulo p?) and `order` (which operand is the larger?).

    Args:
        p: the modulus, 2 to 10,000: numbers are 0 to p - 1.
        operation: `+`, `-` or `*`.
        form: the tokens of a prompt, `a+b=`, `ab=` or `ab`.

    Example:
        >>> import algoscope as ag
        >>> task = ag.Modular(p=113)
        >>> task.prompt("57+80"), task.expected("57+80"), task.domain_size
        ('57+80=', '24', 12769)
    """

    kind: Literal["modular"] = "modular"
    p: int = Field(default=113, ge=2, le=10_000, description="the modulus: numbers are 0 to p - 1")
    operation: Literal["+", "-", "*"] = Field(default="+", description="operation on the two numbers")

    @property
    def order(self) -> int:
        return self.p

    @property
    def sign(self) -> str:
        return self.operation

    def product(self, first: Operand, second: Operand) -> Operand:
        return self._result(first, second) % self.p

    def _result(self, first: Operand, second: Operand) -> Operand:
        """The result before reduction modulo p."""
        if self.operation == "+":
            return first + second
        return first - second if self.operation == "-" else first * second

    def structure(self) -> Structure | None:
        """Addition modulo p; subtraction as addition of the inverse; multiplication, for a prime p, as addition modulo
        p - 1 of logarithms, which leaves out the pairs with a 0.
        """
        number = np.arange(self.p)
        if self.operation != "*":
            return Structure(cyclic(self.p), number, number if self.operation == "+" else -number % self.p, number)
        powers = logarithms(self.p)
        return None if powers is None else Structure(cyclic(self.p - 1), powers, powers, powers)

    def better_fit(self, answers: Int[np.ndarray, "n n"]) -> Fit | None:
        """The operation to which most answers belong; for sums, also with the numbers in another order."""
        first, second = np.ogrid[: self.p, : self.p]
        results = {"+": first + second, "-": first - second, "*": first * second}
        right = {sign: int((answers == result % self.p).sum()) for sign, result in results.items()}
        best = max(right, key=right.__getitem__)
        if right[best] >= LEAST * self.p**2:
            return Fit(f"as a {best} b", {"operation": best}, right[best])
        found = relabelled(cyclic(self.p), answers) if self.operation == "+" else None
        settings = {"task": "group", "group": f"C{self.p}"}
        return found and Fit("with its numbers in another order", {**settings, "elements": found[0].tolist()}, found[1])

    # ------------------------------------------------------------------ classes

    def variables_of(self, tokens: Tokens) -> dict[str, Int[Tensor, "batch column"]]:
        """In one column: `result` before it is reduced, `wraps` (0: the result is the answer; 1: it is reduced), and
        the `answer`.
        """
        result = self._result(*self.operands(tokens))[:, None]
        answer = result % self.p
        return {"result": result, "wraps": (result != answer).long(), "answer": answer}

    @property
    def class_schemes(self) -> tuple[str, ...]:
        return ("wrap", "order")

    def class_names(self, by: str) -> Mapping[str, str]:
        """`wrap`: is the result reduced modulo p? `order`: which operand is the larger?"""
        if by != "wrap":
            return super().class_names(by)
        result = f"a {self.operation} b"
        wraps = "below 0" if self.operation == "-" else f"{self.p} or more"
        return {"plain": f"{result} is the answer", "wraps": f"{result} is {wraps}: it is reduced modulo {self.p}"}

    def class_phrases(self, by: str) -> Iterator[tuple[str, Sequence[int]]]:
        yield from super().class_phrases(by)
        if by == "wrap":
            yield f"a {self.operation} b is not reduced modulo {self.p}", (0,)
            yield f"a {self.operation} b is reduced modulo {self.p}", (1,)

    def class_of(self, tokens: Tokens, by: str) -> Int[Tensor, "batch"]:
        return self.variables_of(tokens)["wraps"][:, 0] if by == "wrap" else super().class_of(tokens, by)
