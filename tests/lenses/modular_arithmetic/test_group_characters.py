"""Functions on groups: the parts against hand-made character tables and against what makes them parts."""

import numpy as np
import pytest

from algoscope.lenses.modular_arithmetic.group_characters import (
    components_of,
    frequencies,
    irreducible_characters,
    representations,
)
from algoscope.tasks.groups.group_tables import Structure, named

GROUPS = ["C2", "C7", "C12", "S3", "D4", "D5", "Q8", "A4", "S4", "A5", "S5", "C3xC3", "S3xC4", "Q8xC3", "C2xC2xC2"]


def classes_of(table: np.ndarray) -> set[frozenset[int]]:
    """Conjugacy classes, the plain way."""
    n = range(len(table))
    inverse = [int(np.flatnonzero(table[g] == 0)[0]) for g in n]
    return {frozenset(int(table[table[x, g], inverse[x]]) for x in n) for g in n}


def values_by_class(name: str) -> set[tuple[complex, ...]]:
    """The character table, one column for each class, classes by size and smallest member."""
    table = named(name)
    members = [min(one) for one in sorted(classes_of(table), key=lambda one: (len(one), min(one)))]
    return {tuple(np.round(row[members], 9) + 0) for row in irreducible_characters(table)}


def test_character_tables_are_those_of_the_textbooks():
    assert values_by_class("S3") == {(1, 1, 1), (1, 1, -1), (2, -1, 0)}  # neutral, 3-cycles, swaps
    assert values_by_class("Q8") == {
        (1, 1, 1, 1, 1), (1, 1, 1, -1, -1), (1, 1, -1, 1, -1), (1, 1, -1, -1, 1), (2, -2, 0, 0, 0),
    }  # fmt: skip
    golden = (1 + 5**0.5) / 2
    degree_3 = {tuple(sorted(row[1:])) for row in values_by_class("A5") if row[0] == 3}
    assert degree_3 == {tuple(np.round(sorted([-1, 0, golden, 1 - golden]), 9))}
    third = np.exp(2j * np.pi / 3)
    complex_ones = [row for row in irreducible_characters(named("A4")) if abs(row.imag).max() > 0.1]
    assert len(complex_ones) == 2
    assert all(min(abs(row - third * whole).min() for whole in (1, -1)) < 1e-9 for row in complex_ones)


@pytest.mark.parametrize("name", GROUPS)
def test_characters_are_orthogonal_and_as_many_as_classes(name):
    table = named(name)
    found = irreducible_characters(table)
    assert len(found) == len(classes_of(table))
    np.testing.assert_allclose(found @ found.conj().T / len(table), np.eye(len(found)), atol=1e-9)
    for one in classes_of(table):
        np.testing.assert_allclose(found[:, list(one)], found[:, [min(one)]] * np.ones(len(one)), atol=1e-9)
    g, h = np.random.default_rng(0).integers(len(table), size=2)
    inverse = np.argmin(table, axis=1)
    averaged = found[:, table[g, table[table[np.arange(len(table)), h], inverse]]].mean(axis=1)
    np.testing.assert_allclose(found[:, g] * found[:, h], found[:, 0] * averaged, atol=1e-8)  # true of irreducible ones


@pytest.mark.parametrize("name", GROUPS)
def test_parts_are_orthogonal_closed_under_translations_and_cannot_be_divided(name):
    table = named(name)
    n, found = len(table), representations(table)
    np.testing.assert_allclose(found.basis @ found.basis.T, np.eye(n), atol=1e-9)
    assert found.parts[0].size == 1
    np.testing.assert_allclose(np.ptp(found.basis[0]), 0, atol=1e-9)
    for part in found.parts:
        projector = found.basis[part.rows].T @ found.basis[part.rows]
        np.testing.assert_allclose(projector, part.degree / n * part.character[found.quotients], atol=1e-9)
        for g in range(n):
            for moved in (table[g], table[:, g]):
                np.testing.assert_allclose(projector[np.ix_(moved, moved)], projector, atol=1e-9)
    inverse = np.argmin(table, axis=1)
    real_classes = {one | frozenset(inverse[list(one)].tolist()) for one in classes_of(table)}
    assert len(found.parts) == len(real_classes)  # as many as there can be


@pytest.mark.parametrize("n", [2, 3, 12, 15, 59])
def test_frequencies_are_the_representations_of_a_cyclic_group(n):
    closed, numeric = frequencies(n), representations(named(f"C{n}"))
    assert [part.label for part in closed.parts] == list(range(n // 2 + 1))  # the highest one too
    assert {part.size for part in closed.varying} <= {1, 2}
    assert [part.size for part in closed.varying].count(1) == (1 if n % 2 == 0 else 0)
    for part in closed.parts:
        g = np.arange(n)
        np.testing.assert_allclose(part.normalised, np.cos(2 * np.pi * part.label * g / n), atol=1e-12)
        [same] = [other for other in numeric.parts if np.allclose(other.character, part.character, atol=1e-9)]
        ours, theirs = (of.basis[p.rows].T @ of.basis[p.rows] for of, p in ((closed, part), (numeric, same)))
        np.testing.assert_allclose(ours, theirs, atol=1e-9)


def test_a_cyclic_table_takes_frequencies_and_any_other_order_of_it_representations():
    number = np.arange(6)
    assert components_of(Structure(named("C6"), number, number, number)).nouns == "frequencies"
    found = components_of(Structure(named("C2xC3"), number, number, number))  # the same group
    assert found.nouns == "representations"
    assert sorted(part.size for part in found.parts) == sorted(part.size for part in frequencies(6).parts)


def test_shares_of_energy_name_the_part_that_a_function_lies_in():
    found = representations(named("S4"))
    rng = np.random.default_rng(1)
    for i, part in enumerate(found.parts):
        matrix = found.basis[part.rows].T @ rng.normal(size=(part.size, 3))
        np.testing.assert_allclose(found.shares(matrix), np.eye(len(found.parts))[i], atol=1e-12)
    anything = rng.normal(size=(24, 5))
    assert found.shares(anything).sum() == pytest.approx(1)
    assert np.isnan(found.shares(np.zeros((24, 2)))).all()


def test_norms_do_not_depend_on_the_basis_within_a_representation():
    found, rng = representations(named("S4")), np.random.default_rng(2)
    matrix = rng.normal(size=(24, 5))
    turned = found.basis.copy()
    rows = found.parts[-1].rows
    turned[rows] = np.linalg.qr(rng.normal(size=(9, 9)))[0] @ turned[rows]
    other = type(found)(found.table, found.noun, turned, found.parts)
    np.testing.assert_allclose(other.norms(matrix), found.norms(matrix), atol=1e-12)
    assert (found.norms(matrix) ** 2).sum() == pytest.approx((matrix**2).sum())


@pytest.mark.parametrize("name", ["S3", "C12", "Q8", "A4"])
def test_the_parts_do_not_depend_on_which_element_is_called_0(name):
    """The same group with its elements renamed has the same characters and subspaces, with the columns renamed."""
    table = named(name)
    n = len(table)
    order = np.random.default_rng(3).permutation(n)
    renamed = np.empty_like(table)
    renamed[np.ix_(order, order)] = order[table]
    assert order[0] != 0
    plain, other = representations(table), representations(renamed)
    rounded = [
        sorted(tuple(np.round(row, 6) + 0) for row in characters)
        for characters in (irreducible_characters(table), irreducible_characters(renamed)[:, order])
    ]
    np.testing.assert_allclose(*rounded, atol=1e-6)
    assert sorted(part.size for part in plain.parts) == sorted(part.size for part in other.parts)
    by_character = {tuple(np.round(part.normalised, 6) + 0): part for part in plain.parts}
    for part in other.parts:
        assert part.normalised[order[0]] == pytest.approx(1)
        same = by_character[tuple(np.round(part.normalised[order], 6) + 0)]
        rows, others = plain.basis[same.rows], other.basis[part.rows][:, order]
        np.testing.assert_allclose(rows.T @ rows, others.T @ others, atol=1e-9)
    np.testing.assert_array_equal(other.quotients[np.ix_(order, order)], order[plain.quotients])
