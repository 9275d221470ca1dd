"""Finite groups as tables: `table[g, h]` is the product of the elements g and h. In groups by name element 0 is the
identity.
"""

import itertools
import re
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Int

from algoscope.core.errors import ConfigError

LARGEST = 1_000  # elements: a task has the square of this number of inputs
KNOWN = "C12 (cyclic), D5 (dihedral, 10 elements), S4 and A5 (permutations, even ones), Q8, or a product such as C2xC4"


@dataclass(frozen=True, eq=False)
class Structure:
    """The group behind an operation: the answer token to the operands `first[g]`, `second[h]` is `answer[table[g, h]]`.

    Subtraction is addition of the inverse, multiplication of residues is addition of logarithms: the same table with
    permuted tokens.
    """

    table: Int[np.ndarray, "n n"]
    first: Int[np.ndarray, "n"]
    second: Int[np.ndarray, "n"]
    answer: Int[np.ndarray, "n"]

    @property
    def order(self) -> int:
        return len(self.table)

    @cached_property
    def inverse(self) -> Int[np.ndarray, "n"]:
        """The inverse of each element."""
        return inverses(self.table)

    @property
    def is_cyclic_sum(self) -> bool:
        """Whether the table is addition modulo n, with elements in their usual order."""
        return bool((self.table == cyclic(self.order)).all())


def cyclic(n: int) -> Int[np.ndarray, "n n"]:
    """Addition modulo n."""
    number = np.arange(n)
    return (number[:, None] + number) % n


def dihedral(n: int) -> Int[np.ndarray, "m m"]:
    """The symmetries of a regular n-gon, 2 n elements: k rotations (numbers below n), then a flip and k rotations."""
    rotations, flips = np.divmod(np.arange(2 * n), n)[::-1]
    sign = np.where(flips[:, None], -1, 1)
    return (rotations[:, None] + sign * rotations) % n + n * (flips[:, None] ^ flips)


def permutations(n: int, even_only: bool = False) -> Int[np.ndarray, "m m"]:
    """The permutations of n elements (or the even ones) in lexicographic order; products apply the right one first."""
    rows = [row for row in itertools.permutations(range(n)) if not even_only or _is_even(row)]
    number = {row: i for i, row in enumerate(rows)}
    return np.array([[number[tuple(g[i] for i in h)] for h in rows] for g in rows])


def quaternions() -> Int[np.ndarray, "8 8"]:
    """1, i, j, k and their negatives: element q + 4 s is (-1)^s times unit q."""
    unit = np.array([[0, 1, 2, 3], [1, 0, 3, 2], [2, 3, 0, 1], [3, 2, 1, 0]])
    negative = np.array([[0, 0, 0, 0], [0, 1, 0, 1], [0, 1, 1, 0], [0, 0, 1, 1]])
    q, s = np.arange(8) % 4, np.arange(8) // 4
    signs = negative[q[:, None], q] ^ s[:, None] ^ s
    return unit[q[:, None], q] + 4 * signs


def product(one: Int[np.ndarray, "n n"], other: Int[np.ndarray, "m m"]) -> Int[np.ndarray, "nm nm"]:
    """The direct product: the pair of element g of one and h of the other is g m + h."""
    m = len(other)
    return (one[:, None, :, None] * m + other[None, :, None, :]).reshape(len(one) * m, -1)


def named(name: str) -> Int[np.ndarray, "n n"]:
    """The table of a group by name. Raises ConfigError for an unknown name and for a group above 1,000 elements."""
    tables = [_one(factor, name) for factor in name.split("x")]
    size = int(np.prod([len(table) for table in tables]))
    if size > LARGEST:
        raise ConfigError(f"group {name!r} has {size:,} elements; at most {LARGEST:,} are supported")
    table = tables[0]
    for factor in tables[1:]:
        table = product(table, factor)
    return table


def _one(factor: str, name: str) -> Int[np.ndarray, "n n"]:
    match = re.fullmatch(r"([CDSAQ])([1-9]\d{0,3})", factor)
    kind, n = (match[1], int(match[2])) if match else ("", 0)
    if kind == "C" and n <= LARGEST:
        return cyclic(n)
    if kind == "D" and 2 * n <= LARGEST:
        return dihedral(n)
    if kind in ("S", "A") and n <= 6:
        return permutations(n, even_only=kind == "A")
    if kind == "Q" and n == 8:
        return quaternions()
    raise ConfigError(f"unknown group {factor!r}" + (f" (in {name!r})" if factor != name else "") + f": {KNOWN}")


def neutral(table: Int[np.ndarray, "n n"]) -> int:
    """The neutral element, which need not be 0."""
    return int((table == np.arange(len(table))).all(axis=1).argmax())


def inverses(table: Int[np.ndarray, "n n"]) -> Int[np.ndarray, "n"]:
    """The inverse of each element."""
    return (table == neutral(table)).argmax(axis=1)


def check(table: Int[np.ndarray, "n n"]) -> None:
    """Raises ValueError, naming the first axiom that fails, where the table is no group."""
    n = len(table)
    number = np.arange(n)
    if table.min() < 0 or table.max() >= n:
        raise ValueError(f"the table has entries outside 0 to {n - 1}")
    if not ((table == number).all(axis=1) & (number == table.T).all(axis=1)).any():
        raise ValueError("no element of the table is the identity: its row and its column must be 0, 1, 2, ...")
    if (np.sort(table, axis=1) != number).any() or (np.sort(table, axis=0) != number[:, None]).any():
        raise ValueError("a row or column of the table has an element twice: there are no inverses")
    for g in range(n):
        if (table[table[g]] != table[g][table]).any():
            h, k = np.argwhere(table[table[g]] != table[g][table])[0]
            raise ValueError(f"the table is not associative: ({g}*{h})*{k} is not {g}*({h}*{k})")


def logarithms(p: int) -> Int[np.ndarray, "n"] | None:
    """Powers of the smallest primitive root modulo p, from the 0th: entry i is root^i. None where p is not
    prime: the nonzero residues then form no group under multiplication.
    """
    for root in range(1, p):
        powers = np.array([pow(root, i, p) for i in range(p - 1)])
        if len(set(powers.tolist())) == p - 1 and 0 not in powers:
            return powers
    return None


def _is_even(row: tuple[int, ...]) -> bool:
    return sum(a > b for a, b in itertools.combinations(row, 2)) % 2 == 0
