"""n-digit addition: `123+456=` and then the sum, units first (`9750<EOS>`) or as we write it (`0579<EOS>`)."""

import re
from collections.abc import Mapping
from itertools import product
from typing import Literal

import torch
from jaxtyping import Bool, Int
from pydantic import Field
from torch import Tensor

from algoscope.core.errors import UnknownNameError, VocabularyError
from algoscope.tasks.base import Task, Tokens
from algoscope.tasks.carry_classes import chain_member, chain_sizes, pattern_member, pattern_sizes
from algoscope.tasks.stages import Balanced, Repeating, Staged
from algoscope.tasks.strata import Stratified, WholeNumbers

PLUS, EQUALS, EOS, PAD = 10, 11, 12, 13
HARD_COLUMN = 0.5  # in a hard draw, the chance that a column is forced
COLUMNS = ("units", "tens", "hundreds", "thousands")  # by name, and by their power of ten beyond
NINES = 2 / 3  # of hard draws, the share whose forced columns sum to nine; in the others they hold zeros and nines
REPEAT = 0.9  # in a repeated draw, the chance that a column has the digits of the one below it

Operand = Int[Tensor, "batch"]


class Addition(Task, Stratified, Staged, Repeating, Balanced):
    """Sums of two numbers below 10^n_digits. Both operands have leading zeros, the sum n_digits + 1 digits."""

    kind: Literal["addition"] = "addition"
    n_digits: int = Field(default=3, ge=1, le=18, description="digits of each operand")
    reversed: bool = Field(default=True, description="write the sum with its units digit first")

    @property
    def vocabulary(self) -> tuple[str, ...]:
        return (*"0123456789", "+", "=", "<EOS>", "<PAD>")

    @property
    def n_ctx(self) -> int:
        return 3 * self.n_digits + 4

    @property
    def prompt_length(self) -> int:
        return 2 * self.n_digits + 2

    @property
    def answer_names(self) -> tuple[str, ...]:
        names = [COLUMNS[i] if i < len(COLUMNS) else f"10^{i}" for i in range(self.n_digits + 1)]
        return (*(names if self.reversed else names[::-1]), "end")

    @property
    def parts(self) -> Mapping[str, slice]:
        n = self.n_digits
        return {
            "first operand": slice(0, n),
            "+": slice(n, n + 1),
            "second operand": slice(n + 1, 2 * n + 1),
            "=": slice(2 * n + 1, 2 * n + 2),
            "sum so far": slice(2 * n + 2, self.n_ctx - 1),
        }

    @property
    def ordinals(self) -> tuple[str, ...]:
        return tuple("0123456789")

    @property
    def used_tokens(self) -> tuple[str, ...]:
        return self.vocabulary[:PAD]

    def prompt(self, text: str) -> str:
        written = re.fullmatch(r"\s*(\d+)\s*\+\s*(\d+)\s*=?\s*", text, flags=re.ASCII)
        if written is None:
            self.encode(text)  # names the character where the vocabulary is the trouble
            raise VocabularyError(f"{text!r} is not a sum: write it as 123+456")
        operands = [digits.lstrip("0") or "0" for digits in written.groups()]
        for digits in operands:
            if len(digits) > self.n_digits:
                raise VocabularyError(f"{digits} in {text!r} has {len(digits)} digits; the task has {self.n_digits}")
        return "+".join(digits.zfill(self.n_digits) for digits in operands) + "="

    def expected(self, text: str) -> str:
        prompt = torch.tensor([self.encode(self.prompt(text))])
        return self.decode(self.sequences(*self.operands(prompt))[0, self.prompt_length :].tolist())

    @property
    def domain_size(self) -> int:
        return 10 ** (2 * self.n_digits)

    def at(self, index: Int[Tensor, "batch"]) -> Tokens:
        base = 10**self.n_digits
        return self.sequences(index // base, index % base)

    def sample(self, n: int, generator: torch.Generator, hard_share: float = 0.0) -> Tokens:
        """Hard draws force each column with chance 1/2: in two of three to sum to nine, so that long carry chains
        become common, in the third to digits 0 and 9, the edge of what the model has to tell apart.
        """
        device = generator.device
        digits = torch.randint(10, (2, n, self.n_digits), generator=generator, device=device)
        first, second = digits[0], digits[1]
        if hard_share > 0:
            kind = torch.rand(n, 1, generator=generator, device=device) / hard_share
            forced = torch.rand(n, self.n_digits, generator=generator, device=device) < HARD_COLUMN
            edge = 9 * torch.randint(2, (2, n, self.n_digits), generator=generator, device=device)
            second = torch.where(forced & (kind < NINES), 9 - first, second)
            at_edge = forced & (kind >= NINES) & (kind < 1)
            first, second = torch.where(at_edge, edge[0], first), torch.where(at_edge, edge[1], second)
        return self.sequences(self._number(first), self._number(second))

    @property
    def n_stages(self) -> int:
        """One for each digit: at stage k both operands are below 10^k, and their upper digits are zeros."""
        return self.n_digits

    def at_stage(self, tokens: Tokens, stage: Int[Tensor, "batch"]) -> Tokens:
        first, second = self.operands(tokens)
        return self.sequences(first % 10**stage, second % 10**stage)

    def repeated(self, tokens: Tokens, generator: torch.Generator) -> Tokens:
        """Each column but the units takes the digits of the one below it with chance 0.9: 7777+2222, 9999+9999."""
        n, device = self.n_digits, generator.device
        again = torch.rand(len(tokens), n, generator=generator, device=device) < REPEAT
        source = torch.where(again, 0, torch.arange(n, device=device)).cummax(dim=1).values  # units first
        operands = tokens[:, :n], tokens[:, n + 1 : 2 * n + 1]
        first, second = (digits.flip(1).gather(1, source).flip(1) for digits in operands)
        return self.sequences(self._number(first), self._number(second))

    def balanced(self, n: int, generator: torch.Generator, nine_share: float) -> Tokens:
        shape, device = (n, self.n_digits), generator.device
        total = torch.randint(19, shape, generator=generator, device=device)
        nine = torch.rand(shape, generator=generator, device=device) < nine_share
        total = torch.where(nine, 9, total)
        least, most = (total - 9).clamp(min=0), total.clamp(max=9)
        within = torch.rand(shape, generator=generator, device=device) * (most - least + 1)
        first = least + within.long()
        return self.sequences(self._number(first), self._number(total - first))

    def keys(self, tokens: Tokens) -> Int[Tensor, "batch"]:
        first, second = self.operands(tokens)
        return first * 10**self.n_digits + second  # above 9 digits it wraps modulo 2^64: rarely, keys coincide

    def edge_cases(self) -> Tokens:
        """What people try first; for 3 digits 123+456, 999+1, 0+0, 999+999, 500+500, 111+222."""
        n = self.n_digits
        count = "1234567890" * 4
        nines, ones, five = 10**n - 1, (10**n - 1) // 9, 5 * 10 ** (n - 1)
        pairs = [
            (int(count[:n]), int(count[n : 2 * n])),
            (nines, 1),
            (0, 0),
            (nines, nines),
            (five, five),
            (ones, 2 * ones),
        ]
        first, second = torch.tensor(pairs).T
        return self.sequences(first, second)

    # ------------------------------------------------------------------ numbers and digits

    def sequences(self, first: Operand, second: Operand) -> Tokens:
        """Whole sequences for pairs of operands: prompt, sum, end-of-sequence."""
        total = self._digits(first + second, self.n_digits + 1)
        parts = [
            self._digits(first, self.n_digits),
            torch.full_like(first, PLUS)[:, None],
            self._digits(second, self.n_digits),
            torch.full_like(first, EQUALS)[:, None],
            total.flip(1) if self.reversed else total,
            torch.full_like(first, EOS)[:, None],
        ]
        return torch.cat(parts, dim=1)

    def operands(self, tokens: Int[Tensor, "batch read"]) -> tuple[Operand, Operand]:
        """The two numbers in the prompts of `tokens` (whole sequences or prompts alone)."""
        n = self.n_digits
        return self._number(tokens[:, :n]), self._number(tokens[:, n + 1 : 2 * n + 1])

    def _digits(self, number: Operand, n: int) -> Int[Tensor, "batch digit"]:
        place = 10 ** torch.arange(n - 1, -1, -1, device=number.device)
        return number[:, None] // place % 10

    def _number(self, digits: Int[Tensor, "batch digit"]) -> Operand:
        place = 10 ** torch.arange(digits.shape[1] - 1, -1, -1, device=digits.device)
        return (digits * place).sum(dim=1)

    # ------------------------------------------------------------------ columns, carries, classes

    def column_sums(self, tokens: Tokens) -> Int[Tensor, "batch column"]:
        """The sum of each column on its own (0 to 18), units first."""
        n = self.n_digits
        return (tokens[:, :n] + tokens[:, n + 1 : 2 * n + 1]).flip(1)

    def variables(self, tokens: Tokens) -> dict[str, Int[Tensor, "batch column"]]:
        """For each column, units first: `column_sum` (0..18, no carry in), `carry` out (0, 1), `digit` of the sum."""
        column_sum = self.column_sums(tokens)
        carry_in = torch.zeros_like(column_sum[:, 0])
        carries, digits = [], []
        for column in column_sum.unbind(1):
            digits.append((column + carry_in) % 10)
            carry_in = (column + carry_in) // 10
            carries.append(carry_in)
        return {
            "column_sum": column_sum,
            "carry": torch.stack(carries, dim=1),
            "digit": torch.stack([*digits, carry_in], dim=1),
        }

    @property
    def class_schemes(self) -> tuple[str, ...]:
        return ("chain", "pattern")

    def class_names(self, by: str) -> Mapping[str, str]:
        """`chain`: S0 to Sn. `pattern`: one letter a column, units last: c carries, 9 sums to nine, s sums to less."""
        self._check_scheme(by)
        if by == "pattern":
            said = {"s": "below nine", "9": "nine", "c": "ten or more"}
            letters = map("".join, product("s9c", repeat=self.n_digits))
            return {name: "columns sum to " + ", ".join(said[letter] for letter in name) for name in letters}
        names = {"S0": "no column carries", "S1": "a carry, none directly below a column of nine"}
        for run in range(1, self.n_digits):
            names[f"S{run + 1}"] = f"a carry runs through {run} column{'s' * (run > 1)} of nine"
        return names

    def classes(self, tokens: Tokens, by: str) -> Int[Tensor, "batch"]:
        """`chain`: the longest run of columns that sum to nine directly above a column that carries, plus one; 0
        without a carry. Source: the classes S0, S1, ... of Quirke and Barez, arXiv 2310.13121.
        """
        self._check_scheme(by)
        column_sum = self.column_sums(tokens)
        if by == "pattern":
            letter = (column_sum >= 9).long() + (column_sum >= 10).long()
            return (letter * 3 ** torch.arange(self.n_digits, device=tokens.device)).sum(dim=1)
        run = torch.full_like(column_sum[:, 0], -1)  # nine-columns since the last carry; -1: no chain here
        longest = run
        for column in column_sum.unbind(1):
            extends: Bool[Tensor, "batch"] = (column == 9) & (run >= 0)
            run = torch.where(column >= 10, 0, torch.where(extends, run + 1, -1))
            longest = torch.maximum(longest, run)
        return longest + 1

    def class_sizes(self, by: str) -> tuple[int, ...]:
        self._check_scheme(by)
        return chain_sizes(self.n_digits) if by == "chain" else pattern_sizes(self.n_digits)

    def class_members(self, by: str, kinds: Int[Tensor, "batch"], rank: WholeNumbers) -> Tokens:
        self._check_scheme(by)
        member = chain_member if by == "chain" else pattern_member
        first, second = member(self.n_digits, kinds, rank)
        return self.sequences(self._number(first.flip(1)), self._number(second.flip(1)))

    def _check_scheme(self, by: str) -> None:
        if by not in self.class_schemes:
            raise UnknownNameError("class scheme", by, self.class_schemes)
