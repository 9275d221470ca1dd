"""n-digit subtraction: `456-123=` and then the difference, units first (`3330<EOS>`), in ten's complement."""

import re
from collections.abc import Mapping
from typing import Literal

import torch
from jaxtyping import Bool, Int
from pydantic import Field
from torch import Tensor

from algoscope.core.errors import UnknownNameError, VocabularyError
from algoscope.tasks.base import Task, Tokens
from algoscope.tasks.digits.addition import EOS, EQUALS, HARD_COLUMN, NINES, PAD, PLUS, Addition, Operand

MINUS = PLUS  # it stands where addition has its plus: weights of one can be read as weights of the other


class Subtraction(Task):
    """Differences a - b of two numbers below 10^n_digits, both with leading zeros.

    The answer is a - b modulo 10^(n_digits + 1): the digits of the difference with a 0 above them where a is at least
    b; else those of its ten's complement with a 9 above them (3 digits: 123 - 456 = -333 is written 9667, units first
    7669). Each input so has one right answer, each column borrows as in writing, and a sequence is as long as a sum's.
    """

    kind: Literal["subtraction"] = "subtraction"
    n_digits: int = Field(default=3, ge=1, le=18, description="digits of each operand")
    reversed: bool = Field(default=True, description="write the difference with its units digit first")

    @property
    def _sums(self) -> Addition:
        """The addition of the same width: its prompts have their tokens at the same places."""
        return Addition(n_digits=self.n_digits, reversed=self.reversed)

    @property
    def vocabulary(self) -> tuple[str, ...]:
        return (*"0123456789", "-", "=", "<EOS>", "<PAD>")

    @property
    def n_ctx(self) -> int:
        return 3 * self.n_digits + 4

    @property
    def prompt_length(self) -> int:
        return 2 * self.n_digits + 2

    @property
    def parts(self) -> Mapping[str, slice]:
        named = {"+": "-", "sum so far": "difference so far"}
        return {named.get(name, name): place for name, place in self._sums.parts.items()}

    @property
    def ordinals(self) -> tuple[str, ...]:
        return tuple("0123456789")

    @property
    def used_tokens(self) -> tuple[str, ...]:
        return self.vocabulary[:PAD]

    def prompt(self, text: str) -> str:
        written = re.fullmatch(r"\s*(\d+)\s*-\s*(\d+)\s*=?\s*", text, flags=re.ASCII)
        if written is None:
            self.encode(text)  # names the character where the vocabulary is the trouble
            raise VocabularyError(f"{text!r} is not a difference: write it as 456-123")
        operands = [digits.lstrip("0") or "0" for digits in written.groups()]
        for digits in operands:
            if len(digits) > self.n_digits:
                raise VocabularyError(f"{digits} in {text!r} has {len(digits)} digits; the task has {self.n_digits}")
        return "-".join(digits.zfill(self.n_digits) for digits in operands) + "="

    def completed(self, prompts: Int[Tensor, "batch read"]) -> Tokens:
        return self.sequences(*self.operands(prompts))

    @property
    def domain_size(self) -> int:
        return 10 ** (2 * self.n_digits)

    def at(self, index: Int[Tensor, "batch"]) -> Tokens:
        base = 10**self.n_digits
        return self.sequences(index // base, index % base)

    def sample(self, n: int, generator: torch.Generator, hard_share: float = 0.0) -> Tokens:
        """Hard draws force each column with chance 1/2: in two of three to equal digits, through which a borrow runs,
        in the third to digits 0 and 9.
        """
        device = generator.device
        first, second = torch.randint(10, (2, n, self.n_digits), generator=generator, device=device)
        if hard_share > 0:
            kind = torch.rand(n, 1, generator=generator, device=device) / hard_share
            forced = torch.rand(n, self.n_digits, generator=generator, device=device) < HARD_COLUMN
            edge = 9 * torch.randint(2, (2, n, self.n_digits), generator=generator, device=device)
            second = torch.where(forced & (kind < NINES), first, second)
            at_edge = forced & (kind >= NINES) & (kind < 1)
            first, second = torch.where(at_edge, edge[0], first), torch.where(at_edge, edge[1], second)
        return self.sequences(_number(first), _number(second))

    def keys(self, tokens: Tokens) -> Int[Tensor, "batch"]:
        return self._sums.keys(tokens)

    def edge_cases(self) -> Tokens:
        """What people try first; for 3 digits 456-123, 100-1, 0-0, 0-999, 500-500, 123-456."""
        n = self.n_digits
        count = "1234567890" * 4
        up, further = int(count[:n]), int(count[n : 2 * n])
        pairs = [(further, up), (10 ** (n - 1), 1), (0, 0), (0, 10**n - 1), (5 * 10 ** (n - 1),) * 2, (up, further)]
        first, second = torch.tensor(pairs).T
        return self.sequences(first, second)

    def sequences(self, first: Operand, second: Operand) -> Tokens:
        """Whole sequences for pairs of operands: prompt, difference, end-of-sequence."""
        sign = torch.where(first < second, 9, 0)[:, None]
        difference = torch.cat([sign, _digits((first - second) % 10**self.n_digits, self.n_digits)], dim=1)
        parts = [
            _digits(first, self.n_digits),
            torch.full_like(first, MINUS)[:, None],
            _digits(second, self.n_digits),
            torch.full_like(first, EQUALS)[:, None],
            difference.flip(1) if self.reversed else difference,
            torch.full_like(first, EOS)[:, None],
        ]
        return torch.cat(parts, dim=1)

    def operands(self, tokens: Int[Tensor, "batch read"]) -> tuple[Operand, Operand]:
        """The two numbers in the prompts of `tokens` (whole sequences or prompts alone)."""
        return self._sums.operands(tokens)

    # ------------------------------------------------------------------ columns, borrows, classes

    def column_differences(self, tokens: Tokens) -> Int[Tensor, "batch column"]:
        """The difference of each column on its own (-9 to 9), units first."""
        n = self.n_digits
        return (tokens[:, :n] - tokens[:, n + 1 : 2 * n + 1]).flip(1)

    def variables(self, tokens: Tokens) -> dict[str, Int[Tensor, "batch column"]]:
        """For each column, units first: `column_difference` (-9..9, nothing borrowed from it), `borrow` (0, 1) from the
        next, `digit` of the answer, the last 0 or 9.
        """
        difference = self.column_differences(tokens)
        borrowed = torch.zeros_like(difference[:, 0])
        borrows, digits = [], []
        for column in difference.unbind(1):
            digits.append((column - borrowed) % 10)
            borrowed = (column < borrowed).long()
            borrows.append(borrowed)
        return {
            "column_difference": difference,
            "borrow": torch.stack(borrows, dim=1),
            "digit": torch.stack([*digits, 9 * borrowed], dim=1),
        }

    @property
    def class_schemes(self) -> tuple[str, ...]:
        return ("chain",)

    def class_names(self, by: str) -> Mapping[str, str]:
        """`chain`: S0 to Sn."""
        self._check_scheme(by)
        names = {"S0": "no column borrows", "S1": "a borrow, none for a column of equal digits"}
        for run in range(1, self.n_digits):
            names[f"S{run + 1}"] = f"a borrow runs through {run} column{'s' * (run > 1)} of equal digits"
        return names

    def classes(self, tokens: Tokens, by: str) -> Int[Tensor, "batch"]:
        """`chain`: the longest run of columns of equal digits directly above a column that borrows, plus one; 0 without
        a borrow.
        """
        self._check_scheme(by)
        difference = self.column_differences(tokens)
        run = torch.full_like(difference[:, 0], -1)  # columns of equal digits since the last borrow; -1: no chain here
        longest = run
        for column in difference.unbind(1):
            extends: Bool[Tensor, "batch"] = (column == 0) & (run >= 0)
            run = torch.where(column < 0, 0, torch.where(extends, run + 1, -1))
            longest = torch.maximum(longest, run)
        return longest + 1

    def _check_scheme(self, by: str) -> None:
        if by not in self.class_schemes:
            raise UnknownNameError("class scheme", by, self.class_schemes)


def _digits(number: Operand, n: int) -> Int[Tensor, "batch digit"]:
    place = 10 ** torch.arange(n - 1, -1, -1, device=number.device)
    return number[:, None] // place % 10


def _number(digits: Int[Tensor, "batch digit"]) -> Operand:
    place = 10 ** torch.arange(digits.shape[1] - 1, -1, -1, device=digits.device)
    return (digits * place).sum(dim=1)
