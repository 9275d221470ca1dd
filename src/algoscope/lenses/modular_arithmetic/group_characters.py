"""Functions on a finite group, decomposed into translation-invariant subspaces: frequencies and representations.

For addition modulo n these are the constant function, the cosine and sine of each frequency, and for an even n the
alternating one. For any group they are the isotypic components of its regular representation: the span of the matrix
entries of one irreducible representation, together with those of its complex conjugate if that is a different one.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Complex, Float, Int

from algoscope.lenses.modular_arithmetic.fourier_basis import fourier_basis
from algoscope.tasks.groups.group_tables import Structure, inverses, neutral

EXACT = 1e-9  # how far characters may be from orthogonal
ATTEMPTS = 8  # random combinations of class sums; one with two nearly equal eigenvalues is discarded


@dataclass(frozen=True, eq=False)
class Component:
    """One component. `label` is the frequency, or the representation's degree and a letter (`2a`).

    `character` is real: that of the representation, or the sum of those of two conjugate ones (2 cos(2 pi k g / n) of
    a frequency). `rows` are its rows in the basis, one per dimension.
    """

    label: int | str
    degree: int
    character: Float[np.ndarray, "n"]
    rows: slice

    @property
    def size(self) -> int:
        """Number of dimensions."""
        return self.rows.stop - self.rows.start

    @property
    def normalised(self) -> Float[np.ndarray, "n"]:
        """The character divided by its value at the neutral element, so that it is 1 there: cos(2 pi k g / n)."""
        return self.character / self.character.max()  # no value is larger than the degree, which it has there


@dataclass(frozen=True, eq=False)
class Components:
    """All components of functions on a group, the constant one first, with an orthonormal basis, one row per dimension.
    `noun` is what a component is called.
    """

    table: Int[np.ndarray, "n n"]
    noun: str
    basis: Float[np.ndarray, "n n"]
    parts: tuple[Component, ...]

    @property
    def order(self) -> int:
        return len(self.table)

    @property
    def varying(self) -> tuple[Component, ...]:
        """All components but the constant one."""
        return self.parts[1:]

    @property
    def labels(self) -> tuple[int | str, ...]:
        """Labels of all components but the constant one."""
        return tuple(part.label for part in self.varying)

    @property
    def nouns(self) -> str:
        return "frequencies" if self.noun == "frequency" else f"{self.noun}s"

    @property
    def function(self) -> str:
        """What the character of a component is called."""
        return "cosine" if self.noun == "frequency" else "character"

    @cached_property
    def part_of_row(self) -> Int[np.ndarray, "n"]:
        """The component of each row of the basis."""
        return np.repeat(np.arange(len(self.parts)), [part.size for part in self.parts])

    @cached_property
    def quotients(self) -> Int[np.ndarray, "n n"]:
        """g c^-1 for elements g and c."""
        return self.table[:, inverses(self.table)]

    def rows_of(self, labels: tuple[int | str, ...]) -> Float[np.ndarray, "dimension n"]:
        """The basis rows of the components with these labels."""
        numbers_of_parts = [number for number, part in enumerate(self.parts) if number and part.label in labels]
        return self.basis[np.isin(self.part_of_row, numbers_of_parts)]

    def shares(self, matrix: Float[np.ndarray, "n width"]) -> Float[np.ndarray, "part"]:
        """The shares of the components, the constant one first, in the energy (sum of squares) of a matrix with one row
        per element; they sum to 1. NaN where the matrix is 0.
        """
        power = ((self.basis @ matrix) ** 2).sum(axis=1)
        energy = np.bincount(self.part_of_row, power)
        return energy / energy.sum() if energy.sum() > 0 else np.full_like(energy, np.nan)

    def norms(self, matrix: Float[np.ndarray, "n width"]) -> Float[np.ndarray, "n"]:
        """The norm of a matrix along each row of the basis. Within a representation of degree 2 or more the basis is
        arbitrary, so each row of such a component gets the root mean square over them.
        """
        power = ((self.basis @ matrix) ** 2).sum(axis=1)
        if self.noun != "frequency":
            power = (np.bincount(self.part_of_row, power) / np.bincount(self.part_of_row))[self.part_of_row]
        return np.sqrt(power)


def components_of(structure: Structure) -> Components:
    """The components for an operation's group: frequencies if it is addition modulo n in its usual order."""
    return frequencies(structure.order) if structure.is_cyclic_sum else representations(structure.table)


def frequencies(n: int) -> Components:
    """The components for addition modulo n: constant, frequencies 1 to (n - 1) / 2, and for an even n the alternating
    one, of frequency n / 2.
    """
    g = np.arange(n)
    parts = [Component(0, 1, np.ones(n), slice(0, 1))]
    for k in range(1, n // 2 + 1):
        alternates = 2 * k == n
        character = np.where(g % 2, -1.0, 1.0) if alternates else 2 * np.cos(2 * np.pi * (k * g % n) / n)
        start = parts[-1].rows.stop
        parts.append(Component(k, 1, character, slice(start, start + (1 if alternates else 2))))
    return Components((g[:, None] + g) % n, "frequency", fourier_basis(n), tuple(parts))


def representations(table: Int[np.ndarray, "n n"]) -> Components:
    """The components for any group by its table, with any neutral element; sorted by degree, the trivial one first.

    The projector on the component of an irreducible representation of degree d with character chi is
    (d / n) chi(g h^-1); those of conjugate characters are added.
    """
    n = len(table)
    characters = _real_characters(irreducible_characters(table), neutral(table))
    quotients = table[:, inverses(table)]
    numbered = sum(i * degree / n * character[quotients] for i, (degree, character) in enumerate(characters))
    _, vectors = np.linalg.eigh(numbered)  # the i-th component has the eigenvalue i
    parts, start, seen = list[Component](), 0, dict[int, int]()
    for degree, character in characters:
        size = round(degree * float(character.max()))
        number = seen[degree] = seen.get(degree, -1) + 1
        parts.append(Component(f"{degree}{_letters(number)}", degree, character, slice(start, start + size)))
        start += size
    return Components(table, "representation", np.ascontiguousarray(vectors.T), tuple(parts))


def irreducible_characters(table: Int[np.ndarray, "n n"]) -> Complex[np.ndarray, "character n"]:
    """The irreducible characters of a group on its elements, by degree, the trivial one first.

    After Burnside: they are the common eigenvectors of multiplication by the class sums. A random combination of these
    that is Hermitian in the basis of class sums of unit length has the same eigenvectors. Checked: orthogonal to 1e-9,
    integer degrees, whose squares sum to n.
    """
    n, inverse, one = len(table), inverses(table), neutral(table)
    conjugates = table[table, inverse[:, None]]  # [x g]: x g x^-1
    members, class_of, sizes = np.unique(conjugates.min(axis=0), return_inverse=True, return_counts=True)
    in_class = (class_of[:, None] == np.arange(len(members))).astype(float)
    length = np.sqrt(sizes)
    for seed in range(ATTEMPTS):
        drawn = np.random.default_rng(seed).normal(size=(len(members), 2)) @ [1, 1j]
        weight = drawn + drawn[class_of[inverse[members]]].conj()
        times = weight[class_of[table[inverse][:, members]]].T @ in_class  # the combination times each class sum
        _, vectors = np.linalg.eigh(times * length[:, None] / length)
        values = vectors / length[:, None]
        at_neutral = values[class_of[one]]
        if (np.abs(at_neutral) > EXACT).all():
            characters = np.sqrt(n) * (values * (np.abs(at_neutral) / at_neutral)).T[:, class_of]
            if _are_characters(characters, one):
                return characters[_order(characters, one)]
    raise AssertionError(f"no characters found for a group of {n} elements")


def _are_characters(values: Complex[np.ndarray, "character n"], one: int) -> bool:
    n = values.shape[1]
    degrees = values[:, one].real
    whole = np.abs(degrees - degrees.round()).max() < EXACT * n and round(float((degrees**2).sum())) == n
    return whole and bool(np.abs(values @ values.conj().T / n - np.eye(len(values))).max() < EXACT)


def _order(values: Complex[np.ndarray, "character n"], one: int) -> list[int]:
    """By degree, then by values, the largest first, so that the trivial character comes before all others."""
    keys = [tuple(np.round([row[one].real, *-row.real, *-row.imag], 6)) for row in values]
    return sorted(range(len(values)), key=lambda i: keys[i])


def _real_characters(values: Complex[np.ndarray, "character n"], one: int) -> list[tuple[int, Float[np.ndarray, "n"]]]:
    """Degree and character of each component: conjugate characters are added."""
    alike = np.abs(values @ values.T) / values.shape[1] > 0.5  # <chi, conjugate of the other> is 1 or 0
    partners = alike.argmax(axis=1)
    return [
        (round(float(row[one].real)), row.real if partner == i else 2 * row.real)
        for i, (row, partner) in enumerate(zip(values, partners, strict=True))
        if i <= partner
    ]


def _letters(number: int) -> str:
    """a, b, ... z, ba, bb, ..."""
    return (_letters(number // 26) if number >= 26 else "") + chr(ord("a") + number % 26)
