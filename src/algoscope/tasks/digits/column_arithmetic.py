"""Written arithmetic column by column: the base class of addition and subtraction, in every format of its inputs."""

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Int
from torch import Tensor

from algoscope.core.arguments import Natural, Share
from algoscope.core.errors import TaskMismatchError
from algoscope.core.numbers import how_many, in_words
from algoscope.tasks.base import Tokens, spans
from algoscope.tasks.digits._written_numbers import Columns, Digits, WrittenNumbers

HARD_COLUMN = 0.5  # in a hard draw, the probability that a column is forced
PASSING = 2 / 3  # share of hard draws whose forced columns pass a carry on; in the others they have digits 0 and 9
AS_NUMBERS = 18  # most digits for which numbers fit into 64 bits
MIXER = 6_364_136_223_846_793_005  # odd, so multiplication modulo 2^64 is invertible

Operand = Int[Tensor, "batch"]
Carries = Int[Tensor, "batch column"]  # units first


class ColumnArithmetic(WrittenNumbers):
    """Two numbers with leading zeros, and their sum or difference, computed column by column with a carry."""

    carry: ClassVar[str]  # name of the carry between columns
    carries: ClassVar[str]  # the verb
    passing: ClassVar[str]  # name of a column that passes a carry on
    direction: ClassVar[int]  # 1: the columns are added; -1: the second is subtracted from the first

    def completed(self, prompts: Int[Tensor, "batch read"]) -> Tokens:
        return self.of_digits(*self.operand_digits(prompts))

    def of_digits(self, first: Digits, second: Digits) -> Tokens:
        """Whole sequences for operands as digits: prompt, result, end-of-sequence."""
        return self.written(first, second, self._carry_through((first + self.direction * second).flip(1))[1])

    # ------------------------------------------------------------------ inputs

    @property
    def domain_size(self) -> int:
        return 10 ** sum(self.widths)

    def at(self, index: Int[Tensor, "batch"]) -> Tokens:
        base = 10 ** min(self.widths[1], AS_NUMBERS)  # for longer numbers a 64-bit index covers only the first inputs
        return self.sequences(index // base, index % base)

    def sample(self, n: Natural, generator: torch.Generator, hard_share: Share = 0.0) -> Tokens:
        """Hard draws force each column with probability 1/2: two thirds to columns that pass a carry (borrow) on, so
        that long chains are common; one third to digits 0 and 9, the extremes.
        """
        device = generator.device
        first, second = torch.randint(10, (2, n, self.n_columns), generator=generator, device=device)
        if hard_share > 0:
            kind = torch.rand(n, 1, generator=generator, device=device) / hard_share
            forced = torch.rand(n, self.n_columns, generator=generator, device=device) < HARD_COLUMN
            edge = 9 * torch.randint(2, (2, n, self.n_columns), generator=generator, device=device)
            second = torch.where(forced & (kind < PASSING), 9 - first if self.direction > 0 else first, second)
            at_edge = forced & (kind >= PASSING) & (kind < 1)
            first, second = torch.where(at_edge, edge[0], first), torch.where(at_edge, edge[1], second)
            if self.widths[1] < self.n_columns:  # a digit alone passes a carry on as 9, a borrow as 0
                alone = forced & (kind < PASSING) & ~self._has_digit(device)[1]
                first = torch.where(alone, 9 if self.direction > 0 else 0, first)
        return self.of_digits(*self._cut(first, second))

    def keys(self, tokens: Tokens) -> Int[Tensor, "batch"]:
        """Above 9 digits keys wrap modulo 2^64, so different inputs can, rarely, have equal keys."""
        if self.n_columns <= AS_NUMBERS:
            first, second = self.operands(tokens)
            return first * 10 ** self.widths[1] + second
        key = torch.zeros_like(tokens[:, 0])
        for digit in torch.cat(self.operand_digits(tokens), dim=1).unbind(1):
            key = key * MIXER + digit + 1
        return key

    @abstractmethod
    def _tried_first(self) -> Sequence[tuple[str, str]]:
        """Pairs of operands of the edge cases; leading zeros may be omitted."""

    def edge_inputs(self) -> Tokens:
        n = self.n_columns
        pairs = [[[int(digit) for digit in number.zfill(n)] for number in pair] for pair in self._tried_first()]
        return self.of_digits(*torch.tensor(pairs).unbind(1))

    # ------------------------------------------------------------------ numbers and digits

    def sequences(self, first: Operand, second: Operand) -> Tokens:
        """Whole sequences for pairs of operands: prompt, result, end-of-sequence."""
        return self.of_digits(self._digits(first), self._digits(second))

    def operands(self, tokens: Int[Tensor, "batch read"]) -> tuple[Operand, Operand]:
        """The two numbers themselves. Raises TaskMismatchError above 18 digits, where they need more than 64 bits."""
        if self.n_columns > AS_NUMBERS:
            raise TaskMismatchError(f"numbers of {self.n_columns} digits exceed 64 bits: read their digits instead")
        first, second = self.operand_digits(tokens)
        powers = 10 ** torch.arange(self.n_columns - 1, -1, -1, device=tokens.device)
        return (first * powers).sum(dim=1), (second * powers).sum(dim=1)

    def _digits(self, number: Operand) -> Digits:
        powers = 10 ** torch.arange(min(self.n_columns, AS_NUMBERS) - 1, -1, -1, device=number.device)
        return F.pad(number[:, None] // powers % 10, (self.n_columns - len(powers), 0))

    def _has_digit(self, device: torch.device) -> tuple[Bool[Tensor, "digit"], Bool[Tensor, "digit"]]:
        """Which of the columns, as we write them, have a digit of the first operand, and which one of the second."""
        column = torch.arange(self.n_columns, 0, -1, device=device)
        return column <= self.widths[0], column <= self.widths[1]

    def _cut(self, first: Digits, second: Digits) -> tuple[Digits, Digits]:
        """The digits that fit into the widths of the operands; above them 0."""
        if self.widths[0] == self.widths[1]:
            return first, second
        has_first, has_second = self._has_digit(first.device)
        return first * has_first, second * has_second

    # ------------------------------------------------------------------ columns, carries, classes

    def columns(self, tokens: Tokens) -> Columns:
        """Each column alone, units first: the sum of its digits (0 to 18), or their difference (-9 to 9)."""
        first, second = self.operand_digits(tokens)
        return (first + self.direction * second).flip(1)

    def variables_of(self, tokens: Tokens) -> dict[str, Columns]:
        """For each column, units first: `column_sum` (0..18) or `column_difference` (-9..9) of its digits alone, the
        `carry` or `borrow` (0, 1) to the next column, and each `digit` of the result.
        """
        columns = self.columns(tokens)
        carries, digits = self._carry_through(columns)
        return {f"column_{self.result}": columns, self.carry: carries, "digit": digits}

    def _carry_through(self, columns: Columns) -> tuple[Carries, Columns]:
        """The carry (borrow) out of each column, and the digits of the result, units first."""
        carry = torch.zeros_like(columns[:, 0])
        carries, digits = [], []
        for column in columns.unbind(1):
            total = column + self.direction * carry
            digits.append(total % 10)
            carry = self.direction * (total // 10)
            carries.append(carry)
        last = self.direction * carry  # above the columns 0 or 1, or for a negative difference 9s
        above = [last % 10, *[last % 10 if self.direction < 0 else torch.zeros_like(last)] * self.result_digits]
        return torch.stack(carries, dim=1), torch.stack([*digits, *above][: self.result_digits], dim=1)

    @property
    def class_schemes(self) -> tuple[str, ...]:
        return ("chain",)

    def class_names(self, by: str) -> Mapping[str, str]:
        """`chain`: S0 to Sn."""
        self._check_scheme(by)
        once = f"a {self.carry}, none directly below a column of {self.passing}"
        names = {"S0": f"no column {self.carries}", "S1": once}
        for run in range(1, self.n_columns):
            through = f"{run} column{'s' * (run > 1)} of {self.passing}"
            names[f"S{run + 1}"] = f"a {self.carry} runs through {through}"
        return names

    def class_phrases(self, by: str) -> Iterator[tuple[str, Sequence[int]]]:
        self._check_scheme(by)
        for kinds in spans(self.n_columns + 1):
            yield self._chains(kinds[0], kinds[-1]), kinds

    def _chains(self, first: int, last: int) -> str:
        """Where the classes S`first` to S`last` are."""
        carry, most = self.carry, self.n_columns - 1
        column = f"a column of {self.passing}"
        if last == 0:
            return f"no column {self.carries}"
        if first <= 1 and last > most:
            return f"any column {self.carries}"
        if first <= 1:
            longer = (
                column if last == 1 else f"more than {in_words(last - 1)} column{'s' * (last > 2)} of {self.passing}"
            )
            some = "" if first == 0 else f"a column {self.carries}, but "
            return f"{some}no {carry} runs through {longer}"
        which = f"a {carry}" if last > most else f"the longest {carry}"
        through = how_many(first - 1, last - 1, 0, most)
        return f"{which} runs through {through} column{'s' * (through != 'one')} of {self.passing}"

    def class_of(self, tokens: Tokens, by: str) -> Int[Tensor, "batch"]:
        """`chain`: the largest number of columns that pass a carry (borrow) on directly above one that generates it,
        plus one; 0 without a carry. Source: the classes S0, S1, ... of Quirke and Barez, arXiv 2310.13121.
        """
        self._check_scheme(by)
        columns = self.columns(tokens)
        makes = self.direction * (columns // 10) == 1
        passes = columns == (9 if self.direction > 0 else 0)
        run = torch.full_like(columns[:, 0], -1)  # passing columns since the last generated carry; -1: no chain
        longest = run
        for made, passed in zip(makes.unbind(1), passes.unbind(1), strict=True):
            extends: Bool[Tensor, "batch"] = passed & (run >= 0)
            run = torch.where(made, 0, torch.where(extends, run + 1, -1))
            longest = torch.maximum(longest, run)
        return longest + 1
