"""Written arithmetic column by column: the base class of addition and subtraction."""

import re
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Int
from pydantic import Field
from torch import Tensor

from algoscope.core.arguments import Natural, Share
from algoscope.core.errors import TaskMismatchError, VocabularyError
from algoscope.core.numbers import how_many, in_words
from algoscope.tasks.base import Task, Tokens, spans

SIGN, EQUALS, EOS, PAD = 10, 11, 12, 13  # all signs have one token id, so that weights of one task run on another
HARD_COLUMN = 0.5  # in a hard draw, the probability that a column is forced
PASSING = 2 / 3  # share of hard draws whose forced columns pass a carry on; in the others they have digits 0 and 9
NAMES = ("units", "tens", "hundreds", "thousands")  # of columns; beyond, by their power of ten
AS_NUMBERS = 18  # most digits for which numbers fit into 64 bits
MIXER = 6_364_136_223_846_793_005  # odd, so multiplication modulo 2^64 is invertible

Operand = Int[Tensor, "batch"]
Digits = Int[Tensor, "batch digit"]  # as we write them, with leading zeros
Columns = Int[Tensor, "batch column"]  # units first


class ColumnArithmetic(Task):
    """Two numbers below 10^n_digits with leading zeros, a sign between them, and a result of n_digits + 1 digits."""

    sign: ClassVar[str]
    result: ClassVar[str]  # name of the answer
    carry: ClassVar[str]  # name of the carry between columns
    carries: ClassVar[str]  # the verb
    passing: ClassVar[str]  # name of a column that passes a carry on
    direction: ClassVar[int]  # 1: the columns are added; -1: the second is subtracted from the first

    n_digits: int = Field(default=3, ge=1, le=200, description="digits of each operand")
    reversed: bool = Field(default=True, description="write the result with its units digit first")
    operands_reversed: bool = Field(
        default=False, description="write the operands with their units digit first, too: 321+654= means 123 + 456"
    )

    # ------------------------------------------------------------------ sequences

    @property
    def vocabulary(self) -> tuple[str, ...]:
        return (*"0123456789", self.sign, "=", "<EOS>", "<PAD>")

    @property
    def n_ctx(self) -> int:
        return 3 * self.n_digits + 4

    @property
    def prompt_length(self) -> int:
        return 2 * self.n_digits + 2

    @property
    def answer_names(self) -> tuple[str, ...]:
        names = [NAMES[i] if i < len(NAMES) else f"10^{i}" for i in range(self.n_digits + 1)]
        return (*(names if self.reversed else names[::-1]), "end")

    @property
    def parts(self) -> Mapping[str, slice]:
        n = self.n_digits
        return {
            "first operand": slice(0, n),
            self.sign: slice(n, n + 1),
            "second operand": slice(n + 1, 2 * n + 1),
            "=": slice(2 * n + 1, 2 * n + 2),
            f"{self.result} so far": slice(2 * n + 2, self.n_ctx - 1),
        }

    @property
    def significance(self) -> tuple[int, ...]:
        n = self.n_digits
        operand, result = range(1, n + 1), range(1, n + 2)
        operand = operand if self.operands_reversed else operand[::-1]
        return (*operand, 0, *operand, 0, *(result if self.reversed else result[::-1]), 0)

    @property
    def width(self) -> int:
        return self.n_digits

    def of_width(self, width: int) -> "ColumnArithmetic":
        return self.model_copy(update={"n_digits": width})

    @property
    def ordinals(self) -> tuple[str, ...]:
        return tuple("0123456789")

    @property
    def used_tokens(self) -> tuple[str, ...]:
        return self.vocabulary[:PAD]

    def prompt(self, text: str) -> str:
        written = re.fullmatch(rf"\s*(\d+)\s*{re.escape(self.sign)}\s*(\d+)\s*=?\s*", text, flags=re.ASCII)
        if written is None:
            self.encode(text)  # raises for a character outside the vocabulary
            raise VocabularyError(f"{text!r} is not a {self.result}: write it as {self._example}")
        units_first = self.operands_reversed
        operands = [(digits.rstrip("0") if units_first else digits.lstrip("0")) or "0" for digits in written.groups()]
        for digits in operands:
            if len(digits) > self.n_digits:
                raise VocabularyError(f"{digits} in {text!r} has {len(digits)} digits; the task has {self.n_digits}")
        pad = str.ljust if units_first else str.rjust
        return self.sign.join(pad(digits, self.n_digits, "0") for digits in operands) + "="

    @property
    @abstractmethod
    def _example(self) -> str:
        """An example of an input, for error messages."""

    def completed(self, prompts: Int[Tensor, "batch read"]) -> Tokens:
        return self.of_digits(*self.operand_digits(prompts))

    # ------------------------------------------------------------------ inputs

    @property
    def domain_size(self) -> int:
        return 10 ** (2 * self.n_digits)

    def at(self, index: Int[Tensor, "batch"]) -> Tokens:
        base = 10 ** min(self.n_digits, AS_NUMBERS)  # for longer numbers a 64-bit index covers only the first inputs
        return self.sequences(index // base, index % base)

    def sample(self, n: Natural, generator: torch.Generator, hard_share: Share = 0.0) -> Tokens:
        """Hard draws force each column with probability 1/2: two thirds to columns that pass a carry (borrow) on, so
        that long chains are common; one third to digits 0 and 9, the extremes.
        """
        device = generator.device
        first, second = torch.randint(10, (2, n, self.n_digits), generator=generator, device=device)
        if hard_share > 0:
            kind = torch.rand(n, 1, generator=generator, device=device) / hard_share
            forced = torch.rand(n, self.n_digits, generator=generator, device=device) < HARD_COLUMN
            edge = 9 * torch.randint(2, (2, n, self.n_digits), generator=generator, device=device)
            passing = 9 - first if self.direction > 0 else first
            second = torch.where(forced & (kind < PASSING), passing, second)
            at_edge = forced & (kind >= PASSING) & (kind < 1)
            first, second = torch.where(at_edge, edge[0], first), torch.where(at_edge, edge[1], second)
        return self.of_digits(first, second)

    def keys(self, tokens: Tokens) -> Int[Tensor, "batch"]:
        """Above 9 digits keys wrap modulo 2^64, so different inputs can, rarely, have equal keys."""
        if self.n_digits <= AS_NUMBERS:
            first, second = self.operands(tokens)
            return first * 10**self.n_digits + second
        key = torch.zeros_like(tokens[:, 0])
        for digit in torch.cat(self.operand_digits(tokens), dim=1).unbind(1):
            key = key * MIXER + digit + 1
        return key

    @abstractmethod
    def _tried_first(self) -> Sequence[tuple[str, str]]:
        """Pairs of operands of the edge cases; leading zeros may be omitted."""

    def edge_inputs(self) -> Tokens:
        pairs = [
            [[int(digit) for digit in number.zfill(self.n_digits)] for number in pair] for pair in self._tried_first()
        ]
        return self.of_digits(*torch.tensor(pairs).unbind(1))

    # ------------------------------------------------------------------ numbers and digits

    def sequences(self, first: Operand, second: Operand) -> Tokens:
        """Whole sequences for pairs of operands: prompt, result, end-of-sequence."""
        return self.of_digits(self._digits(first), self._digits(second))

    def of_digits(self, first: Digits, second: Digits) -> Tokens:
        """The same for operands as digits."""
        one = torch.ones_like(first[:, :1])
        if self.operands_reversed:
            first, second = first.flip(1), second.flip(1)
        prompt = torch.cat([first, SIGN * one, second, EQUALS * one], dim=1)
        result = self.variables_of(prompt)["digit"]
        return torch.cat([prompt, result if self.reversed else result.flip(1), EOS * one], dim=1)

    def operand_digits(self, tokens: Int[Tensor, "batch read"]) -> tuple[Digits, Digits]:
        """The digits of the two numbers in the prompts of `tokens` (whole sequences or prompts alone)."""
        n = self.n_digits
        first, second = tokens[:, :n], tokens[:, n + 1 : 2 * n + 1]
        return (first.flip(1), second.flip(1)) if self.operands_reversed else (first, second)

    def operands(self, tokens: Int[Tensor, "batch read"]) -> tuple[Operand, Operand]:
        """The two numbers themselves. Raises TaskMismatchError above 18 digits, where they need more than 64 bits."""
        if self.n_digits > AS_NUMBERS:
            raise TaskMismatchError(f"numbers of {self.n_digits} digits exceed 64 bits: read their digits instead")
        first, second = self.operand_digits(tokens)
        powers = 10 ** torch.arange(self.n_digits - 1, -1, -1, device=tokens.device)
        return (first * powers).sum(dim=1), (second * powers).sum(dim=1)

    def _digits(self, number: Operand) -> Digits:
        powers = 10 ** torch.arange(min(self.n_digits, AS_NUMBERS) - 1, -1, -1, device=number.device)
        return F.pad(number[:, None] // powers % 10, (self.n_digits - len(powers), 0))

    # ------------------------------------------------------------------ columns, carries, classes

    def columns(self, tokens: Tokens) -> Columns:
        """Each column alone, units first: the sum of its digits (0 to 18), or their difference (-9 to 9)."""
        first, second = self.operand_digits(tokens)
        return (first + self.direction * second).flip(1)

    def variables_of(self, tokens: Tokens) -> dict[str, Columns]:
        """For each column, units first: `column_sum` (0..18) or `column_difference` (-9..9) of its digits alone, the
        `carry` or `borrow` (0, 1) to the next column, and the `digit` of the result, of which there is one more.
        """
        columns = self.columns(tokens)
        carry = torch.zeros_like(columns[:, 0])
        carries, digits = [], []
        for column in columns.unbind(1):
            total = column + self.direction * carry
            digits.append(total % 10)
            carry = self.direction * (total // 10)
            carries.append(carry)
        return {
            f"column_{self.result}": columns,
            self.carry: torch.stack(carries, dim=1),
            "digit": torch.stack([*digits, self.direction * carry % 10], dim=1),
        }

    @property
    def class_schemes(self) -> tuple[str, ...]:
        return ("chain",)

    def class_names(self, by: str) -> Mapping[str, str]:
        """`chain`: S0 to Sn."""
        self._check_scheme(by)
        once = f"a {self.carry}, none directly below a column of {self.passing}"
        names = {"S0": f"no column {self.carries}", "S1": once}
        for run in range(1, self.n_digits):
            through = f"{run} column{'s' * (run > 1)} of {self.passing}"
            names[f"S{run + 1}"] = f"a {self.carry} runs through {through}"
        return names

    def class_phrases(self, by: str) -> Iterator[tuple[str, Sequence[int]]]:
        self._check_scheme(by)
        for kinds in spans(self.n_digits + 1):
            yield self._chains(kinds[0], kinds[-1]), kinds

    def _chains(self, first: int, last: int) -> str:
        """Where the classes S`first` to S`last` are."""
        carry, most = self.carry, self.n_digits - 1
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
