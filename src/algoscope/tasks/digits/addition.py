"""n-digit addition: `123+456=` and then the sum, units first (`9750<EOS>`) or as we write it (`0579<EOS>`)."""

import re
from collections.abc import Mapping
from itertools import product
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Int
from pydantic import Field
from torch import Tensor

from algoscope.core.errors import TaskMismatchError, UnknownNameError, VocabularyError
from algoscope.tasks.base import Task, Tokens
from algoscope.tasks.digits.carry_classes import chain_member, chain_sizes, pattern_member, pattern_sizes
from algoscope.tasks.stages import Repeating, Staged
from algoscope.tasks.strata import Stratified, WholeNumbers

PLUS, EQUALS, EOS, PAD = 10, 11, 12, 13
HARD_COLUMN = 0.5  # in a hard draw, the chance that a column is forced
COLUMNS = ("units", "tens", "hundreds", "thousands")  # by name, and by their power of ten beyond
NINES = 2 / 3  # of hard draws, the share whose forced columns sum to nine; in the others they hold zeros and nines
REPEAT = 0.9  # in a repeated draw, the chance that a column has the digits of the one below it
AS_NUMBERS = 18  # digits of the longest operands whose sum is a 64-bit number
PATTERNS = 12  # columns whose patterns can still be listed: 3^12 of them
MIXER = 6_364_136_223_846_793_005  # odd: modulo 2^64 it loses nothing

Operand = Int[Tensor, "batch"]


class Addition(Task, Stratified, Staged, Repeating):
    """Sums of two numbers below 10^n_digits. Both operands have leading zeros, the sum n_digits + 1 digits."""

    kind: Literal["addition"] = "addition"
    n_digits: int = Field(default=3, ge=1, le=200, description="digits of each operand")
    reversed: bool = Field(default=True, description="write the sum with its units digit first")

    operands_reversed: bool = Field(
        default=False, description="write the operands with their units digit first, too: 321+654= asks for 123 + 456"
    )

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
    def significance(self) -> tuple[int, ...]:
        n = self.n_digits
        operand, total = range(1, n + 1), range(1, n + 2)
        operand = operand if self.operands_reversed else operand[::-1]
        return (*operand, 0, *operand, 0, *(total if self.reversed else total[::-1]), 0)

    @property
    def width(self) -> int:
        return self.n_digits

    def of_width(self, width: int) -> "Addition":
        return self.model_copy(update={"n_digits": width})

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
        back = self.operands_reversed
        operands = [(digits.rstrip("0") if back else digits.lstrip("0")) or "0" for digits in written.groups()]
        for digits in operands:
            if len(digits) > self.n_digits:
                raise VocabularyError(f"{digits} in {text!r} has {len(digits)} digits; the task has {self.n_digits}")
        pad = str.ljust if back else str.rjust
        return "+".join(pad(digits, self.n_digits, "0") for digits in operands) + "="

    def completed(self, prompts: Int[Tensor, "batch read"]) -> Tokens:
        return self.of_digits(*self.operand_digits(prompts))

    @property
    def domain_size(self) -> int:
        return 10 ** (2 * self.n_digits)

    def at(self, index: Int[Tensor, "batch"]) -> Tokens:
        base = 10 ** min(self.n_digits, AS_NUMBERS)  # of longer sums an index of 64 bits reaches the first ones only
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
        return self.of_digits(first, second)

    @property
    def n_stages(self) -> int:
        """One for each digit: at stage k both operands are below 10^k, and their upper digits are zeros."""
        return self.n_digits

    def at_stage(self, tokens: Tokens, stage: Int[Tensor, "batch"]) -> Tokens:
        live = torch.arange(self.n_digits, 0, -1, device=tokens.device) <= stage[:, None]
        first, second = self.operand_digits(tokens)
        return self.of_digits(first * live, second * live)

    def repeated(self, tokens: Tokens, generator: torch.Generator) -> Tokens:
        """Each column but the units takes the digits of the one below it with chance 0.9: 7777+2222, 9999+9999."""
        n, device = self.n_digits, generator.device
        again = torch.rand(len(tokens), n, generator=generator, device=device) < REPEAT
        source = torch.where(again, 0, torch.arange(n, device=device)).cummax(dim=1).values  # units first
        first, second = (digits.flip(1).gather(1, source).flip(1) for digits in self.operand_digits(tokens))
        return self.of_digits(first, second)

    def keys(self, tokens: Tokens) -> Int[Tensor, "batch"]:
        """Above 9 digits they wrap modulo 2^64: rarely, keys of different inputs coincide."""
        if self.n_digits <= AS_NUMBERS:
            first, second = self.operands(tokens)
            return first * 10**self.n_digits + second
        key = torch.zeros_like(tokens[:, 0])
        for digit in torch.cat(self.operand_digits(tokens), dim=1).unbind(1):
            key = key * MIXER + digit + 1
        return key

    def edge_cases(self) -> Tokens:
        """What people try first; for 3 digits 123+456, 999+1, 0+0, 999+999, 500+500, 111+222."""
        n = self.n_digits
        count = "1234567890" * n
        five = "5".ljust(n, "0")
        pairs = [
            (count[:n], count[n : 2 * n]),
            ("9" * n, "1".zfill(n)),
            ("0" * n, "0" * n),
            ("9" * n, "9" * n),
            (five, five),
            ("1" * n, "2" * n),
        ]
        first, second = torch.tensor([[[int(digit) for digit in number] for number in pair] for pair in pairs]).unbind(
            1
        )
        return self.of_digits(first, second)

    # ------------------------------------------------------------------ numbers and digits

    def sequences(self, first: Operand, second: Operand) -> Tokens:
        """Whole sequences for pairs of operands: prompt, sum, end-of-sequence."""
        return self.of_digits(self._digits(first), self._digits(second))

    def of_digits(self, first: Int[Tensor, "batch digit"], second: Int[Tensor, "batch digit"]) -> Tokens:
        """The same for operands as digits, as we write them, with their leading zeros."""
        one = torch.ones_like(first[:, :1])
        if self.operands_reversed:
            first, second = first.flip(1), second.flip(1)
        prompt = torch.cat([first, PLUS * one, second, EQUALS * one], dim=1)
        total = self.variables(prompt)["digit"]
        return torch.cat([prompt, total if self.reversed else total.flip(1), EOS * one], dim=1)

    def operand_digits(
        self, tokens: Int[Tensor, "batch read"]
    ) -> tuple[Int[Tensor, "batch digit"], Int[Tensor, "batch digit"]]:
        """The digits of the two numbers in the prompts of `tokens` (whole sequences or prompts alone), as we write
        them.
        """
        n = self.n_digits
        first, second = tokens[:, :n], tokens[:, n + 1 : 2 * n + 1]
        return (first.flip(1), second.flip(1)) if self.operands_reversed else (first, second)

    def operands(self, tokens: Int[Tensor, "batch read"]) -> tuple[Operand, Operand]:
        """The two numbers themselves. Raises TaskMismatchError above 18 digits, where they need more than 64 bits."""
        if self.n_digits > AS_NUMBERS:
            raise TaskMismatchError(f"numbers of {self.n_digits} digits exceed 64 bits: read their digits instead")
        first, second = self.operand_digits(tokens)
        return self._number(first), self._number(second)

    def _digits(self, number: Operand) -> Int[Tensor, "batch digit"]:
        place = 10 ** torch.arange(min(self.n_digits, AS_NUMBERS) - 1, -1, -1, device=number.device)
        return F.pad(number[:, None] // place % 10, (self.n_digits - len(place), 0))

    def _number(self, digits: Int[Tensor, "batch digit"]) -> Operand:
        place = 10 ** torch.arange(digits.shape[1] - 1, -1, -1, device=digits.device)
        return (digits * place).sum(dim=1)

    # ------------------------------------------------------------------ columns, carries, classes

    def column_sums(self, tokens: Tokens) -> Int[Tensor, "batch column"]:
        """The sum of each column on its own (0 to 18), units first."""
        first, second = self.operand_digits(tokens)
        return (first + second).flip(1)

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
        return ("chain", "pattern") if self.n_digits <= PATTERNS else ("chain",)

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
        return self.of_digits(first.flip(1), second.flip(1))

    def _check_scheme(self, by: str) -> None:
        if by not in self.class_schemes:
            raise UnknownNameError("class scheme", by, self.class_schemes)
