"""Base class of binary operations: the prompt `57+80=`, then the answer as one token, `24`."""

import re
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from jaxtyping import Int
from pydantic import Field
from torch import Tensor

from algoscope.core.arguments import Natural, Share
from algoscope.core.errors import VocabularyError
from algoscope.tasks.base import Task, Tokens
from algoscope.tasks.groups.group_tables import Structure

Operand = Int[Tensor, "batch"]


@dataclass(frozen=True)
class Fit:
    """Fields of a task with which `n_right` of the answers of a model to all pairs are right, and these in words."""

    words: str
    settings: Mapping[str, Any]
    n_right: int


class Binary(Task):
    """An operation on the numbers 0 to `order` - 1, each a token of its own; the answer is one token.

    `form` says how the prompt is written: `a+b=` (four tokens, with the task's own sign), `ab=` (three, as in the
    published grokking models), or `ab` (two). Without a sign, the operands are separated by a space in text.
    """

    whole_numbers: ClassVar[bool] = True

    form: Literal["a+b=", "ab=", "ab"] = Field(default="a+b=", description="the tokens of a prompt")

    @property
    @abstractmethod
    def order(self) -> int:
        """The number of elements: operands and answers are 0 to order - 1."""

    @property
    @abstractmethod
    def sign(self) -> str:
        """The sign of the operation, which is the token between the operands in the form `a+b=`."""

    @abstractmethod
    def product(self, first: Operand, second: Operand) -> Operand:
        """The answers."""

    @abstractmethod
    def structure(self) -> Structure | None:
        """The group of the operation, or None where it is not a group."""

    def better_fit(self, answers: Int[np.ndarray, "n n"]) -> Fit | None:
        """Other fields of the task with which at least half of these answers to all pairs (-1: no number) are right."""
        return None

    # ------------------------------------------------------------------ sequences

    @property
    def vocabulary(self) -> tuple[str, ...]:
        return (*map(str, range(self.order)), *self._signs)

    @property
    def _signs(self) -> tuple[str, ...]:
        return {"a+b=": (self.sign, "="), "ab=": ("=",), "ab": ()}[self.form]

    @property
    def n_ctx(self) -> int:
        return self.prompt_length + 1

    @property
    def prompt_length(self) -> int:
        return 2 + len(self._signs)

    @property
    def operand_positions(self) -> tuple[int, int]:
        """The positions of the two operands."""
        return (0, 2) if self.form == "a+b=" else (0, 1)

    @property
    def parts(self) -> Mapping[str, slice]:
        first, second = (slice(pos, pos + 1) for pos in self.operand_positions)
        named = {"first operand": first, "second operand": second}
        if self.form == "a+b=":
            named = {"first operand": first, self.sign: slice(1, 2), "second operand": second}
        return named if self.form == "ab" else named | {"=": slice(self.prompt_length - 1, self.prompt_length)}

    @property
    def ordinals(self) -> tuple[str, ...]:
        return self.vocabulary[: self.order]

    @property
    def used_tokens(self) -> tuple[str, ...]:
        return self.vocabulary

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids, with a space between consecutive numbers."""
        words = [self.token(i) for i in ids]
        return re.sub(r"(?<=\d)\n(?=\d)", " ", "\n".join(words)).replace("\n", "")

    def encode(self, text: str) -> list[int]:
        if self.form == "a+b=":
            return super().encode(text)
        ids = list[int]()
        for piece in text.split():
            ids += super().encode(piece)
        if len(ids) > self.n_ctx:
            raise VocabularyError(f"{text!r} has {len(ids)} tokens; the context of {self.kind} holds {self.n_ctx}")
        return ids

    def prompt(self, text: str) -> str:
        written = re.fullmatch(r"\s*(\d+)(\s*[-+*]\s*|\s+)(\d+)\s*=?\s*", text, flags=re.ASCII)
        if written is None:
            self.encode(text)  # raises for a character outside the vocabulary
            raise VocabularyError(f"{text!r} is not an input of this task: write it as {self._example}")
        first, sign, second = written[1], written[2].strip(), written[3]
        if sign and sign != self.sign:
            raise VocabularyError(f"{text!r} has {sign!r}; the task has {self.sign!r}: write it as {self._example}")
        numbers = [digits.lstrip("0") or "0" for digits in (first, second)]
        for digits in numbers:
            if digits not in self.ordinals:
                raise VocabularyError(
                    f"{digits} in {text!r} is not below {self.order}: the numbers are 0 to {self.order - 1}"
                )
        return self._written(numbers)

    def _written(self, numbers: list[str]) -> str:
        between = self.sign if self.form == "a+b=" else " "
        return between.join(numbers) + ("" if self.form == "ab" else "=")

    def completed(self, prompts: Int[Tensor, "batch read"]) -> Tokens:
        return self.sequences(*self.operands(prompts))

    @property
    def _example(self) -> str:
        return self._written([str(self.order // 2), str(self.order - 1)])

    # ------------------------------------------------------------------ inputs

    @property
    def domain_size(self) -> int:
        return self.order**2

    def at(self, index: Int[Tensor, "batch"]) -> Tokens:
        return self.sequences(index // self.order, index % self.order)

    def sample(self, n: Natural, generator: torch.Generator, hard_share: Share = 0.0) -> Tokens:
        """Pairs are drawn uniformly, also for `hard_share`: this task has no rare or difficult inputs."""
        first, second = torch.randint(self.order, (2, n), generator=generator, device=generator.device)
        return self.sequences(first, second)

    def keys(self, tokens: Tokens) -> Int[Tensor, "batch"]:
        first, second = self.operands(tokens)
        return first * self.order + second

    def edge_inputs(self) -> Tokens:
        """Edge cases: the smallest, middle and largest numbers, where sums wrap; for 113 elements the pairs
        (0, 0), (0, 112), (112, 1), (112, 112), (56, 56), (56, 57), (1, 1).
        """
        last, half = self.order - 1, self.order // 2
        pairs = [(0, 0), (0, last), (last, 1), (last, last), (half, half), (half, self.order - half), (1, 1)]
        first, second = (torch.tensor(pairs) % self.order).T
        return self.sequences(first, second)

    def sequences(self, first: Operand, second: Operand) -> Tokens:
        """Whole sequences for pairs of operands: prompt, answer."""
        columns = [first, second, self.product(first, second)]
        signs = [torch.full_like(first, self.order + i) for i in range(len(self._signs))]
        if self.form == "a+b=":
            columns.insert(1, signs.pop(0))
        return torch.stack([*columns[:-1], *signs, columns[-1]], dim=1)

    def operands(self, tokens: Int[Tensor, "batch read"]) -> tuple[Operand, Operand]:
        """The two numbers in the prompts of `tokens` (whole sequences or prompts alone)."""
        first, second = self.operand_positions
        return tokens[:, first], tokens[:, second]

    # ------------------------------------------------------------------ classes

    def class_of(self, tokens: Tokens, by: str) -> Int[Tensor, "batch"]:
        """`order`: which operand is larger."""
        self._check_scheme(by)
        first, second = self.operands(tokens)
        return (first - second).sign() + 1

    def class_names(self, by: str) -> Mapping[str, str]:
        self._check_scheme(by)
        return {"less": "a < b", "equal": "a = b", "greater": "a > b"}

    def class_phrases(self, by: str) -> Iterator[tuple[str, Sequence[int]]]:
        yield from super().class_phrases(by)
        if by == "order":
            yield from (("a <= b", (0, 1)), ("a >= b", (1, 2)), ("a and b differ", (0, 2)))
