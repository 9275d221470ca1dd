"""The group that given answers are the products of, and the order of its elements, found from the answers alone."""

from collections.abc import Iterator, Sequence
from math import factorial, lgamma, log

import numpy as np
from jaxtyping import Int

from algoscope.tasks.groups.group_tables import check, named, neutral

LEAST = 0.5  # share of products that must be right
CHANCE = 1e-3  # largest probability that random answers have as many right products under any order
AS_NEUTRAL = 0.6  # least share of products with one token that leave the other token as it is
PLAUSIBLE = 0.25  # least share of products that are right, where images of generators are tried
ENOUGH = 0.95  # share at which no better order is looked for
MOST_TRIED = 2_000  # images of generators
PROBES = 500  # products on which they are tried
ROUNDS = 5  # of voting

Table = Int[np.ndarray, "n n"]
Elements = Int[np.ndarray, "n"]


def relabelled(table: Table, answers: Table) -> tuple[Elements, int] | None:
    """The element that each token stands for, such that most answers are products of the group; and how many are. None
    where that is less than half of them, or what random answers might have under one of all orders.

    `answers[x, y]` is the answer to the tokens x and y; -1 stands for an answer that is no element. Images of
    generators fix the images of all their products, each by the votes of all pairs with that product, so that some
    wrong answers do no harm; images that most answers contradict are discarded. Orders that differ by an automorphism
    have the same products.
    """
    n, number = len(table), np.arange(len(table))
    as_neutral = (answers == number).sum(axis=1) + (number == answers.T).sum(axis=1)
    if as_neutral.max() < AS_NEUTRAL * 2 * n:
        return None
    best: tuple[int, tuple[int, ...]] = 0, ()
    start = _with(np.full(n, -1), neutral(table), int(as_neutral.argmax()))
    for image in _images(table, answers, start, _generators(table), iter(range(MOST_TRIED))):
        for _ in range(ROUNDS):
            image = _voted(table, answers, image)
        if len(set(image.tolist())) == n:
            n_right = int((answers[image[:, None], image] == image[table]).sum())
            best = max(best, (n_right, tuple(np.argsort(image).tolist())))
            if n_right >= ENOUGH * n * n:
                break
    enough = best[0] >= LEAST * n * n and _exceeds_chance(n, best[0])
    return (np.array(best[1]), best[0]) if enough else None


def other_group(answers: Table) -> tuple[str, Elements | None] | None:
    """The name of the group whose products all these answers are, with its order of elements; the empty name for one
    that has no name here; None where they are no group.
    """
    try:
        check(answers)
    except ValueError:
        return None
    for name in _names(len(answers)):
        table = named(name)
        if _profile(table) == _profile(answers) and (found := relabelled(table, answers)):
            return name, found[0]
    return "", None


def _names(n: int) -> Iterator[str]:
    """Names of groups of n elements: single ones, then products."""
    single = {f"C{n}": n, f"D{n // 2}": n if n % 2 == 0 and n > 4 else 0, "Q8": 8}
    single |= {f"S{k}": factorial(k) for k in range(3, 7)} | {f"A{k}": factorial(k) // 2 for k in range(4, 7)}
    singles = [name for name, size in single.items() if size == n]
    yield from singles
    for d in range(2, n // 2 + 1):
        if n % d == 0:
            for rest in _names(n // d):
                yield from (f"{first}x{rest}" for first in _names(d) if "x" not in first)


def _profile(table: Table) -> tuple[int, list[int]]:
    """How many pairs commute, and the orders of the elements."""
    return int((table == table.T).sum()), sorted(_orders(table).tolist())


def _orders(table: Table) -> Elements:
    """How often each element is taken to reach the neutral one."""
    one, number = neutral(table), np.arange(len(table))
    orders, power = np.ones(len(table), dtype=int), number.copy()
    while (power != one).any():
        orders += power != one
        power = np.where(power == one, one, table[power, number])
    return orders


def _exceeds_chance(n: int, n_right: int) -> bool:
    """Whether random answers have as many right products with a probability below `CHANCE`, under any of n! orders; by
    Chernoff's bound on the tail of a binomial variable.
    """
    share, chance = n_right / n**2, 1 / n
    off = (1 - share) * log((1 - share) / (1 - chance)) if share < 1 else 0.0
    return n**2 * (share * log(share / chance) + off) > lgamma(n + 1) - log(CHANCE)


def _generators(table: Table) -> list[int]:
    """Few elements whose products are all elements, those of large order first."""
    image, orders, chosen = np.full(len(table), -1), _orders(table), list[int]()
    image[neutral(table)] = neutral(table)
    while (image < 0).any():
        chosen.append(int(np.where(image < 0, orders, 0).argmax()))
        image = _closed(table, table, _with(image, chosen[-1], chosen[-1]))
    return chosen


def _with(image: Elements, g: int, token: int) -> Elements:
    image = image.copy()
    image[g] = token
    return image


def _images(
    table: Table, answers: Table, image: Elements, generators: Sequence[int], tries: Iterator[int]
) -> Iterator[Elements]:
    """Images of all elements that the answers do not contradict too often: generator after generator."""
    if not generators:
        if (image >= 0).all():
            yield image
        return
    for token in set(range(len(table))) - set(image.tolist()):
        if next(tries, None) is None:
            return
        more = _closed(table, answers, _with(image, generators[0], token))
        if _is_plausible(table, answers, more):
            yield from _images(table, answers, more, generators[1:], tries)


def _closed(table: Table, answers: Table, image: Elements) -> Elements:
    """The images of all products of the elements that have one (-1: none), while the answers support them."""
    while True:
        grown = _voted(table, answers, image)
        if (grown >= 0).sum() == (image >= 0).sum() or not _is_plausible(table, answers, grown):
            return grown
        image = grown


def _voted(table: Table, answers: Table, image: Elements) -> Elements:
    """For every element the most frequent answer to two images whose product it is, where the image it has counts
    twice; -1 where there is none.
    """
    n, known = len(table), np.flatnonzero(image >= 0)
    tokens = image[known]
    product, answer = table[known[:, None], known].ravel(), answers[tokens[:, None], tokens].ravel()
    product, answer = np.concatenate([product, known, known]), np.concatenate([answer, tokens, tokens])
    reached, row = np.unique(product[answer >= 0], return_inverse=True)
    votes = np.bincount(row * n + answer[answer >= 0], minlength=len(reached) * n).reshape(-1, n)
    voted = np.full(n, -1)
    voted[reached] = votes.argmax(axis=1)
    return voted


def _is_plausible(table: Table, answers: Table, image: Elements) -> bool:
    """Whether different elements have different images, and products of images are images of products, for many."""
    known = np.flatnonzero(image >= 0)
    if len(set(image[known].tolist())) < (1 - PLAUSIBLE) * len(known):
        return False
    g, h = known[np.random.default_rng(0).integers(len(known), size=(2, PROBES))]
    return bool((answers[image[g], image[h]] == image[table[g, h]]).mean() >= PLAUSIBLE)
