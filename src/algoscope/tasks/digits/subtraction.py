"""n-digit subtraction: the prompt `456-123=`, then the difference, units first (`3330<EOS>`), in ten's complement."""

from collections.abc import Sequence
from typing import ClassVar, Literal

from algoscope.tasks.digits.column_arithmetic import ColumnArithmetic


class Subtraction(ColumnArithmetic):
    """Differences a - b of two numbers below 10^n_digits, both with leading zeros.

    The answer is a - b modulo 10^(n_digits + 1): the digits of the difference with a 0 above them where a is at least
    b; else those of its ten's complement with a 9 above them (3 digits: 123 - 456 = -333 is written 9667, units first
    7669). So each input has one right answer, each column borrows as in written subtraction, and sequences are
    as long as those of addition.

    Args:
        n_digits: digits of each operand, 1 to 200.
        reversed: the difference is written with its units digit first.
        operands_reversed: the operands are written units first, too.
        second_digits, answer_digits, prefix, between, equals, ends, padding, tokens: other formats, as in Addition.

    Example:
        >>> import algoscope as ag
        >>> task = ag.Subtraction(n_digits=3)
        >>> task.prompt("456-123"), task.expected("456-123"), task.expected("123-456")
        ('456-123=', '3330<EOS>', '7669<EOS>')
    """

    sign: ClassVar[str] = "-"
    result: ClassVar[str] = "difference"
    carry: ClassVar[str] = "borrow"
    carries: ClassVar[str] = "borrows"
    passing: ClassVar[str] = "equal digits"
    direction: ClassVar[int] = -1

    kind: Literal["subtraction"] = "subtraction"

    @property
    def _example(self) -> str:
        return "456-123"

    def _tried_first(self) -> Sequence[tuple[str, str]]:
        """For 3 digits 456-123, 100-1, 0-0, 0-999, 500-500, 123-456."""
        n, m = self.widths
        count = "1234567890" * self.n_columns * 2
        pairs = [(count[m : m + n], count[:m]), ("1".ljust(n, "0"), "1"), ("0", "0"), ("0", "9" * m)]
        return [*pairs, ("5".ljust(n, "0"), "5".ljust(m, "0")), (count[:n], count[n : n + m])]
