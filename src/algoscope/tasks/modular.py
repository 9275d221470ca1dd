"""Arithmetic modulo p: `57+80=` and then one token, `24`. Every number from 0 to p - 1 is a token of its own."""

import re
from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from jaxtyping import Int
from pydantic import Field
from torch import Tensor

from algoscope.core.errors import UnknownNameError, VocabularyError
from algoscope.tasks.base import Task, Tokens

Operand = Int[Tensor, "batch"]


class Modular(Task):
    """a + b, a - b or a * b, modulo p. A sequence is `a`, the sign, `b`, `=` and the answer: five tokens.

    The answer is one token, so no end-of-sequence token follows it: `<EOS>` is in the vocabulary and in no sequence.
    """

    whole_numbers: ClassVar[bool] = True

    kind: Literal["modular"] = "modular"
    p: int = Field(default=113, ge=2, le=10_000, description="the modulus: numbers are 0 to p - 1")
    operation: Literal["+", "-", "*"] = Field(default="+", description="what is done to the two numbers")

    @property
    def vocabulary(self) -> tuple[str, ...]:
        return (*map(str, range(self.p)), self.operation, "=", "<EOS>")

    @property
    def n_ctx(self) -> int:
        return 5

    @property
    def prompt_length(self) -> int:
        return 4

    @property
    def parts(self) -> Mapping[str, slice]:
        return {
            "first operand": slice(0, 1),
            self.operation: slice(1, 2),
            "second operand": slice(2, 3),
            "=": slice(3, 4),
        }

    @property
    def ordinals(self) -> tuple[str, ...]:
        return self.vocabulary[: self.p]

    @property
    def used_tokens(self) -> tuple[str, ...]:
        return self.vocabulary[:-1]

    def prompt(self, text: str) -> str:
        written = re.fullmatch(r"\s*(\d+)\s*([-+*])\s*(\d+)\s*=?\s*", text, flags=re.ASCII)
        if written is None:
            self.encode(text)  # names the character where the vocabulary is the trouble
            raise VocabularyError(f"{text!r} is not a question of this task: write it as {self._example}")
        first, sign, second = written.groups()
        if sign != self.operation:
            raise VocabularyError(
                f"{text!r} has {sign!r}; the task has {self.operation!r}: write it as {self._example}"
            )
        numbers = [digits.lstrip("0") or "0" for digits in (first, second)]
        for digits in numbers:
            if digits not in self.ordinals:
                raise VocabularyError(f"{digits} in {text!r} is not below {self.p}: the numbers are 0 to {self.p - 1}")
        return self.operation.join(numbers) + "="

    def expected(self, text: str) -> str:
        prompt = torch.tensor([self.encode(self.prompt(text))])
        return self.decode(self.sequences(*self.operands(prompt))[0, self.prompt_length :].tolist())

    @property
    def _example(self) -> str:
        return f"{self.p // 2}{self.operation}{self.p - 1}"

    @property
    def domain_size(self) -> int:
        return self.p**2

    def at(self, index: Int[Tensor, "batch"]) -> Tokens:
        return self.sequences(index // self.p, index % self.p)

    def sample(self, n: int, generator: torch.Generator, hard_share: float = 0.0) -> Tokens:
        """Pairs are drawn uniformly, those of the hard share too: here no input is rarer or harder than another."""
        first, second = torch.randint(self.p, (2, n), generator=generator, device=generator.device)
        return self.sequences(first, second)

    def keys(self, tokens: Tokens) -> Int[Tensor, "batch"]:
        first, second = self.operands(tokens)
        return first * self.p + second

    def edge_cases(self) -> Tokens:
        """What people try first: both ends of the numbers and where they wrap; for p = 113 the pairs (0, 0), (0, 112),
        (112, 1), (112, 112), (56, 56), (56, 57), (1, 1).
        """
        last, half = self.p - 1, self.p // 2
        pairs = [(0, 0), (0, last), (last, 1), (last, last), (half, half), (half, self.p - half), (1, 1)]
        first, second = torch.tensor(pairs).T
        return self.sequences(first, second)

    # ------------------------------------------------------------------ numbers

    def sequences(self, first: Operand, second: Operand) -> Tokens:
        """Whole sequences for pairs of operands: prompt, answer."""
        sign, equals = torch.full_like(first, self.p), torch.full_like(first, self.p + 1)
        return torch.stack([first, sign, second, equals, self._result(first, second) % self.p], dim=1)

    def operands(self, tokens: Int[Tensor, "batch read"]) -> tuple[Operand, Operand]:
        """The two numbers in the prompts of `tokens` (whole sequences or prompts alone)."""
        return tokens[:, 0], tokens[:, 2]

    def _result(self, first: Operand, second: Operand) -> Operand:
        """What the operation gives before it is reduced modulo p."""
        if self.operation == "+":
            return first + second
        return first - second if self.operation == "-" else first * second

    # ------------------------------------------------------------------ classes

    def variables(self, tokens: Tokens) -> dict[str, Int[Tensor, "batch column"]]:
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
        self._check_scheme(by)
        if by == "order":
            return {"less": "a < b", "equal": "a = b", "greater": "a > b"}
        result = f"a {self.operation} b"
        wraps = "below 0" if self.operation == "-" else f"{self.p} or more"
        return {"plain": f"{result} is the answer", "wraps": f"{result} is {wraps}: it is reduced modulo {self.p}"}

    def classes(self, tokens: Tokens, by: str) -> Int[Tensor, "batch"]:
        self._check_scheme(by)
        if by == "order":
            first, second = self.operands(tokens)
            return (first - second).sign() + 1
        return self.variables(tokens)["wraps"][:, 0]

    def _check_scheme(self, by: str) -> None:
        if by not in self.class_schemes:
            raise UnknownNameError("class scheme", by, self.class_schemes)
