"""n-digit addition: the prompt `123+456=`, then the sum, units first (`9750<EOS>`) or last (`0579<EOS>`)."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from typing import ClassVar, Literal

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from algoscope.tasks.base import Tokens, spans
from algoscope.tasks.capabilities import Repeating, Staged, Stratified, WholeNumbers
from algoscope.tasks.digits._written_numbers import NAMES
from algoscope.tasks.digits.carry_classes import (
    chain_member,
    chain_sizes,
    chains_of_patterns,
    pattern_member,
    pattern_sizes,
)
from algoscope.tasks.digits.column_arithmetic import ColumnArithmetic

REPEAT = 0.9  # in a repeated draw, the probability that a column has the digits of the one below it
SUMS = {  # of a column, by its first and last letter of s, 9, c
    (0, 0): "less than nine",
    (0, 1): "nine or less",
    (1, 1): "nine",
    (1, 2): "nine or more",
    (2, 2): "ten or more",
}
PATTERNS = 12  # largest number of columns whose 3^n patterns are listed


class Addition(ColumnArithmetic, Stratified, Staged, Repeating):
    """Sums of two numbers below 10^n_digits, both with leading zeros; a sum has n_digits + 1 digits.

    Other fields change the format, for adders that read or write another one; a sum is typed as `123+456` in all of
    them. `Addition(prefix="0", between="000", equals="0", ends=False, padding=False)` reads `0123000456` and `0`.

    Its classes: `chain` by the length of the longest carry chain (S0 none, S1 one column, ...), and up to 12 digits
    `pattern` by whether each column sums to less than nine (s), to nine (9), or carries (c).

    Args:
        n_digits: digits of each operand, 1 to 200.
        reversed: the sum is written with its units digit first, in the order of carries.
        operands_reversed: the operands are written units first, too: `321+654=` asks for 123 + 456.
        second_digits: digits of the second operand; None: n_digits.
        answer_digits: digits of the sum, its lowest; None: one more than the wider operand has. With n_digits of them
            a sum is modulo 10^n_digits.
        prefix, between, equals: the tokens before, between and after the operands, such as `<BOS>`, `000` or nothing.
            `<NAME>` is one token, any other character is one. Between None, it is `+`.
        ends: sequences end with `<EOS>`.
        padding: the vocabulary has `<PAD>`, which no sequence uses.
        tokens: the vocabulary in order, as one text, such as `+=0123456789`; None: the digits, the tokens of between,
            equals and prefix, `<EOS>`, `<PAD>`, as far as there are any.

    Example:
        >>> import algoscope as ag
        >>> task = ag.Addition(n_digits=3)
        >>> task.prompt("123+4"), task.expected("123+4"), task.n_ctx
        ('123+004=', '7210<EOS>', 13)
        >>> task.domain_size, task.class_names("chain")["S2"]
        (1000000, 'a carry runs through 1 column of nine')
        >>> plain = ag.Addition(n_digits=3, ends=False, padding=False)
        >>> plain.d_vocab, plain.expected("123+4")
        (12, '7210')
    """

    sign: ClassVar[str] = "+"
    result: ClassVar[str] = "sum"
    carry: ClassVar[str] = "carry"
    carries: ClassVar[str] = "carries"
    passing: ClassVar[str] = "nine"
    direction: ClassVar[int] = 1

    kind: Literal["addition"] = "addition"

    @property
    def _example(self) -> str:
        return "123+456"

    def _tried_first(self) -> Sequence[tuple[str, str]]:
        """For 3 digits 123+456, 999+1, 0+0, 999+999, 500+500, 111+222."""
        n, m = self.widths
        count = "1234567890" * self.n_columns * 2
        pairs = [(count[:n], count[n : n + m]), ("9" * n, "1"), ("0", "0"), ("9" * n, "9" * m)]
        return [*pairs, ("5".ljust(n, "0"), "5".ljust(m, "0")), ("1" * n, "2" * m)]

    @property
    def n_stages(self) -> int:
        """One per digit: at stage k both operands are below 10^k; their upper digits are zeros."""
        return self.n_columns

    def at_stage(self, tokens: Tokens, stage: Int[Tensor, "batch"]) -> Tokens:
        live = torch.arange(self.n_columns, 0, -1, device=tokens.device) <= stage[:, None]
        first, second = self.operand_digits(tokens)
        return self.of_digits(first * live, second * live)

    def repeated(self, tokens: Tokens, generator: torch.Generator) -> Tokens:
        """Each column but the units takes the digits of the one below it with probability 0.9: 7777+2222, 9999+9999."""
        n, device = self.n_columns, generator.device
        again = torch.rand(len(tokens), n, generator=generator, device=device) < REPEAT
        source = torch.where(again, 0, torch.arange(n, device=device)).cummax(dim=1).values  # units first
        first, second = (digits.flip(1).gather(1, source).flip(1) for digits in self.operand_digits(tokens))
        return self.of_digits(*self._cut(first, second))

    # ------------------------------------------------------------------ classes

    @property
    def class_schemes(self) -> tuple[str, ...]:
        n, m = self.widths
        return ("chain", "pattern") if n == m <= PATTERNS else ("chain",)

    def class_names(self, by: str) -> Mapping[str, str]:
        """`chain`: S0 to Sn. `pattern`: one letter a column, units last: c carries, 9 sums to nine, s sums to less."""
        self._check_scheme(by)
        if by == "chain":
            return super().class_names(by)
        meaning = {"s": "below nine", "9": "nine", "c": "ten or more"}
        letters = map("".join, product("s9c", repeat=self.n_digits))
        return {name: "columns sum to " + ", ".join(meaning[letter] for letter in name) for name in letters}

    def class_phrases(self, by: str) -> Iterator[tuple[str, Sequence[int]]]:
        """Of patterns: those of some carry chains, and those with some sums in one column."""
        if by == "chain":
            yield from super().class_phrases(by)
            return
        self._check_scheme(by)
        chains = chains_of_patterns(self.n_digits)
        for span in spans(self.n_digits + 1):
            yield self._chains(span[0], span[-1]), np.flatnonzero(np.isin(chains, span)).tolist()
        for column, letters in product(range(self.n_digits), spans(3)):
            name = NAMES[column] if column < len(NAMES) else f"10^{column}"
            at = np.isin(np.arange(3**self.n_digits) // 3**column % 3, letters)
            yield f"the {name} column sums to {SUMS[letters[0], letters[-1]]}", np.flatnonzero(at).tolist()

    def class_of(self, tokens: Tokens, by: str) -> Int[Tensor, "batch"]:
        self._check_scheme(by)
        if by == "chain":
            return super().class_of(tokens, by)
        column_sum = self.columns(tokens)
        letter = (column_sum >= 9).long() + (column_sum >= 10).long()
        return (letter * 3 ** torch.arange(self.n_digits, device=tokens.device)).sum(dim=1)

    def class_sizes(self, by: str) -> tuple[int, ...]:
        self._check_scheme(by)
        return chain_sizes(self.n_columns, min(self.widths)) if by == "chain" else pattern_sizes(self.n_digits)

    def class_members(self, by: str, kinds: Int[Tensor, "batch"], rank: WholeNumbers) -> Tokens:
        self._check_scheme(by)
        if by == "chain":
            wider, narrower = chain_member(self.n_columns, min(self.widths), kinds, rank)
        else:
            wider, narrower = pattern_member(self.n_columns, kinds, rank)
        first, second = (wider, narrower) if self.widths[0] == self.n_columns else (narrower, wider)
        return self.of_digits(first.flip(1), second.flip(1))
