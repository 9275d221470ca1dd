"""Counting and listing the members of classes of sums without enumerating sums, column by column, units first.

Two digits sum to less than nine in 45 of 100 cases, to nine in 10, to ten or more in 45: the letters s, 9, c. A
class says which letters the columns may have, so its size is a count of words of letters, each weighted by the pairs
of digits that its letters have. Going up the columns, two numbers are a sufficient state for the class of a word: the
length of the current chain (a carry and the columns of nine directly above it), and that of the longest chain so far.
Above the narrower operand a column has one digit: less than nine in 9 of 10 cases, nine in 1.
"""

from functools import cache

import numpy as np
import torch
from jaxtyping import Int, Shaped
from torch import Tensor

from algoscope.tasks.capabilities import WholeNumbers

PAIRS = tuple(  # pairs of digits by letter: their sum is below nine, nine, ten or more
    [(a, b) for a in range(10) for b in range(10) if (a + b >= 9) + (a + b >= 10) == letter] for letter in range(3)
)
N_PAIRS = tuple(map(len, PAIRS))  # 45, 10, 45
N_ALONE = (9, 1, 0)
FIRST_DIGIT, SECOND_DIGIT = (
    torch.tensor([[pair[which] for pair in pairs] + [0] * (45 - len(pairs)) for pairs in PAIRS]) for which in (0, 1)
)

States = Int[np.ndarray, "rows"]  # chain * (n + 1) + longest; chain: its columns, the carrying one included, or 0
Digits = Int[Tensor, "batch column"]  # units first


def chain_sizes(n: int, both: int) -> tuple[int, ...]:
    """The exact number of sums of n columns, the lowest `both` of two digits, in the classes S0, S1, ... Sn."""
    return tuple(_ways(n, both)[n][0])


def pattern_sizes(n: int) -> tuple[int, ...]:
    """The exact number of sums for each of the 3^n words of letters, in the order of `Addition.classes`."""
    sizes = np.ones(1, dtype=object)
    for _ in range(n):
        sizes = np.outer(np.array(N_PAIRS, dtype=object), sizes).ravel()
    return tuple(sizes)


def chains_of_patterns(n: int) -> States:
    """The class S0, S1, ... Sn of each word of letters, in the order of `pattern_sizes`."""
    word, state = np.arange(3**n), np.zeros(3**n, dtype=int)
    for column in range(n):
        climbed = np.stack([_climb(state, letter, n) for letter in range(3)])
        state = climbed[word // 3**column % 3, word]
    return state % (n + 1)


def chain_member(n: int, both: int, kinds: Int[Tensor, "batch"], rank: WholeNumbers) -> tuple[Digits, Digits]:
    """The digits of the wider and of the narrower operand of sum number `rank` among those of class `kinds`: each has
    one rank.
    """
    kind, rows = kinds.cpu().numpy(), np.arange(len(rank))
    state = np.zeros(len(rank), dtype=int)
    letters, picks = np.zeros((2, len(rank), n), dtype=int)
    for column in range(n):
        choices = np.stack([_climb(state, letter, n) for letter in range(3)])
        ways = _ways(n, both)[n - 1 - column][choices, kind]  # completions, by letter
        pairs = N_PAIRS if column < both else N_ALONE
        below_nine = ways[0] * pairs[0]
        below_ten = below_nine + ways[1] * pairs[1]
        letter = (rank >= below_nine).astype(int) + (rank >= below_ten)
        rank = rank - np.stack([below_nine * 0, below_nine, below_ten])[letter, rows]
        letters[:, column], picks[:, column] = letter, rank // ways[letter, rows]
        rank, state = rank % ways[letter, rows], choices[letter, rows]
    wider, narrower = _digits(letters, picks, kinds.device)
    wider[:, both:] = torch.from_numpy(np.where(letters == 1, 9, picks)[:, both:])
    narrower[:, both:] = 0
    return wider, narrower


def pattern_member(n: int, kinds: Int[Tensor, "batch"], rank: WholeNumbers) -> tuple[Digits, Digits]:
    """The same for classes that are one word of letters each."""
    letters = kinds.cpu().numpy()[:, None] // 3 ** np.arange(n) % 3
    picks = np.zeros_like(letters)
    for column in range(n):
        choices = np.array(N_PAIRS, dtype=object)[letters[:, column]]
        picks[:, column], rank = rank % choices, rank // choices
    return _digits(letters, picks, kinds.device)


def _digits(
    letters: Int[np.ndarray, "batch column"], picks: Int[np.ndarray, "batch column"], device: torch.device
) -> tuple[Digits, Digits]:
    """The pair of digits number `picks` among those of each letter."""
    letter, pick = torch.from_numpy(letters), torch.from_numpy(picks)
    return FIRST_DIGIT[letter, pick].to(device), SECOND_DIGIT[letter, pick].to(device)


@cache
def _ways(n: int, both: int) -> tuple[Shaped[np.ndarray, "state kind"], ...]:
    """By the number of remaining columns: the number of completions from each state to each class."""
    state, kind = np.arange((n + 1) ** 2), np.arange(n + 1)
    ways = [(state[:, None] % (n + 1) == kind).astype(int).astype(object)]
    for column in reversed(range(n)):
        pairs = N_PAIRS if column < both else N_ALONE
        ways.append(sum(pairs[letter] * ways[-1][_climb(state, letter, n)] for letter in range(3)))
    return tuple(ways)


def _climb(state: States, letter: int, n: int) -> States:
    """The state after one more column."""
    chain, longest = np.divmod(state, n + 1)
    if letter == 1:
        chain = np.where(chain > 0, np.minimum(chain + 1, n), 0)
    else:
        chain = np.full_like(chain, 1 if letter == 2 else 0)
    return chain * (n + 1) + np.maximum(longest, chain)
