"""named tensors -> layout: weights of another tool under our names, with their layout, the sizes of the axes, and the
tensors that are not weights.

Names determine the family of a layout. Where several layouts share their names, every orientation of the matrices is
tried, and exactly one must fit all shapes; ambiguous shapes raise an error that names the option to set.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import product
from typing import Any

from torch import Tensor

from algoscope.core.errors import CheckpointError, some_of
from algoscope.formats.layouts import BUFFERS, LAYOUTS, OURS, TOGETHER, UNGATED, Layout, reorder_axes

STATED = "the config or settings"


class MisfitError(Exception):  # never leaves this module
    """Shapes that do not fit a layout."""


class OpenChoice(CheckpointError):  # noqa: N818  # what the file leaves open, and the option that settles it
    """A choice that the file leaves open: the setting that settles it, and its possible values."""

    def __init__(self, name: str, values: Iterable[Any], message: str) -> None:
        super().__init__(message)
        self.name, self.values = name, tuple(values)

    def __reduce__(self) -> tuple[object, ...]:
        return OpenChoice, (self.name, self.values, str(self))


def divisors(n: int) -> tuple[int, ...]:
    return tuple(k for k in range(1, n + 1) if n % k == 0)


@dataclass(frozen=True)
class Sizes:
    """The sizes of named axes, and the weight from which each is known. `joined`: products with unknown factors."""

    of: Mapping[str, int]
    known_from: Mapping[str, str]
    joined: Mapping[tuple[str, ...], tuple[int, str]]


@dataclass(frozen=True)
class LayoutReading:
    """Weights under our names, with their layout and sizes."""

    layout: str
    """The name of the layout, or `mixed` where no single layout has all orientations."""
    how: str
    """How the layout was determined."""
    names: Layout
    """A layout with the names of the file."""
    weights: Mapping[str, Tensor]
    parts: frozenset[str]
    sizes: Sizes
    n_layers: int
    buffers: Mapping[str, Tensor]
    left_out: tuple[str, ...]
    """One line for each tensor in the file that is not a weight of the model."""
    choices: Mapping[str, str] = field(default_factory=dict)
    """What was chosen where no shape shows how weights are to be read (`layouts.CHOICES`)."""
    one_norm: bool = False
    """Whether both halves of a block read one norm."""

    def every(self, part: str) -> list[Tensor]:
        """The weights of a part in every block, in our axes; none where the file has no such part."""
        if part not in self.parts:
            return []
        name = (OURS if "gate" in self.parts else UNGATED)[part][0]
        if "*" not in name:
            return [self.weights[name]]
        return [self.weights[name.replace("*", str(layer))] for layer in range(self.n_layers)]

    def name(self, part: str) -> str:
        """The name of a part in the layout of the file, in the first block."""
        return self.names.rows.get(part, OURS[part])[0].replace("*", "0")


def tensors_to_layout(
    weights: Mapping[str, Tensor], layout: str | None, known_sizes: Mapping[str, int], source: str
) -> LayoutReading:
    """Foreign weights under our names.

    `layout` names one of `LAYOUTS`; by default it is determined from names and shapes. `known_sizes` are those given by
    a config or the settings (`head`, `kv_head`, `d_head`). Raises CheckpointError, naming `source`, for unknown names,
    missing parts, contradictory shapes, and shapes that fit several layouts.
    """
    weights, left_out = _without_prefix(weights)
    buffers = {name: value for name, value in weights.items() if name.rsplit(".", 1)[-1] in BUFFERS}
    rest = {name: value for name, value in weights.items() if name not in buffers}
    candidates = [LAYOUTS[layout]] if layout else list(LAYOUTS.values())
    parts_of = {one.name: _parts_by_name(rest, one) for one in candidates}
    most = max(len(known) for known in parts_of.values())
    if most == 0:
        raise CheckpointError(
            f"{source}: no weight in it has a name of {'the layout' if layout else 'a layout'} "
            f"{', '.join(one.name for one in candidates)}; it has {some_of(map(repr, rest))}{_hint(rest)}"
        )
    candidates = [one for one in candidates if len(parts_of[one.name]) == most]
    where = parts_of[candidates[0].name]
    left_out += aliases(rest, where, source)
    whole = [name for name in where if not rest[name].is_floating_point()]
    if whole:
        raise CheckpointError(f"{source}: {whole[0]} is of the type {rest[whole[0]].dtype}: weights are floats")
    parts = complete_parts(where, candidates[0], source)
    candidates = [one for one in candidates if one.needs <= parts]
    shapes = {name: tuple(rest[name].shape) for name in where}
    axes, sizes, chosen, how = _find_axes(where, shapes, candidates, weights, known_sizes, source, named=bool(layout))
    ours = OURS if "gate" in parts else UNGATED
    ours_by_name = {}
    for name, (part, layer) in where.items():
        here, wanted = ours[part]
        ours_by_name[here.replace("*", str(layer))] = reorder_axes(rest[name], axes[part], wanted, sizes.of)
    n_layers = 1 + max(layer for _, layer in where.values() if layer is not None)
    names = LAYOUTS.get(chosen, candidates[0])
    return LayoutReading(chosen, how, names, ours_by_name, parts, sizes, n_layers, buffers, tuple(left_out))


def n_unknown_to_layouts(weights: Mapping[str, Tensor]) -> int:
    """How many weights no layout has, in the layout that has the most."""
    weights, _ = _without_prefix(weights)
    rest = [name for name in weights if name.rsplit(".", 1)[-1] not in BUFFERS]
    return len(rest) - max(len(_parts_by_name(rest, one)) for one in LAYOUTS.values())


# ---------------------------------------------------------------------- names


def _parts_by_name(weights: Iterable[str], layout: Layout) -> dict[str, tuple[str, int | None]]:
    """Part and layer of each weight whose name the layout has; an underscore before the last word is ignored."""
    part_of = {name: part for part, (name, _) in layout.rows.items()}
    parts: dict[str, tuple[str, int | None]] = {}
    for name in weights:
        layer = re.match(r"blocks\.(\d+)\.", name)
        key = re.sub(r"^blocks\.\d+\.", "blocks.*.", name)
        part = part_of.get(key) or part_of.get(re.sub(r"\._(\w+)$", r".\1", key))
        if part is not None:
            parts[name] = part, int(layer[1]) if layer else None
    return parts


def _without_prefix(weights: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """The weights without a prefix common to all names, such as `model.`"""
    embeddings = {row.rows["embed"][0] for row in LAYOUTS.values()}
    prefixes = {
        name[: -len(known)] for name in weights for known in embeddings if name == known or name.endswith("." + known)
    }
    for prefix in sorted(prefixes, key=len):
        if prefix and all(name.startswith(prefix) for name in weights):
            return {name[len(prefix) :]: value for name, value in weights.items()}, [f"{prefix!r} before every name"]
    return dict(weights), []


def aliases(weights: Mapping[str, Tensor], where: Mapping[str, object], source: str) -> list[str]:
    """A line for each weight of unknown name that duplicates a known one. Raises CheckpointError for others."""
    lines, unknown = [], []
    for name in weights:
        if name in where:
            continue
        value = weights[name]
        both = (value, value.T) if value.ndim == 2 else (value,)
        twin = next((k for k in where for t in both if t.shape == weights[k].shape and t.equal(weights[k])), None)
        if twin is None or (value == value.flatten()[:1]).all():  # constant tensors may be equal by chance
            unknown.append(name)
        else:
            lines.append(f"{name}, which is {twin} again")
    if unknown:
        raise CheckpointError(
            f"{source} has {some_of(map(repr, unknown))}, which no part of our transformer corresponds to: it is "
            "another kind of model, or has names that are not known"
        )
    return lines


def complete_parts(where: Mapping[str, tuple[str, int | None]], layout: Layout, source: str) -> frozenset[str]:
    """The parts in the file. Raises CheckpointError for missing required parts, and for blocks with different
    parts.
    """
    blocks: dict[int, set[str]] = {}
    for part, layer in where.values():
        if layer is not None:
            blocks.setdefault(layer, set()).add(part)
    every = set[str]().union(*blocks.values())
    needed = {"q", "k", "v", "o"} | ({"in", "out"} if every & {"in", "out", "gate"} else set())
    for layer in range(max(blocks, default=0) + 1):
        missing = (every | needed) - blocks.get(layer, set())
        if missing:
            rows = {**OURS, **layout.rows}
            names = [rows[part][0].replace("*", str(layer)) for part in rows if part in missing]
            raise CheckpointError(
                f"{source} lacks {some_of(map(repr, names))}; it has blocks {sorted(blocks) or 'none'}"
            )
    parts = every | {part for part, layer in where.values() if layer is None}
    if "embed" not in parts:
        raise CheckpointError(f"{source} lacks {layout.rows['embed'][0]!r}, the token embedding")
    return frozenset(parts)


# ---------------------------------------------------------------------- shapes


def _find_axes(
    where: Mapping[str, tuple[str, int | None]],
    shapes: Mapping[str, tuple[int, ...]],
    candidates: list[Layout],
    weights: Iterable[str],
    known_sizes: Mapping[str, int],
    source: str,
    named: bool,
) -> tuple[dict[str, str], Sizes, str, str]:
    """The axes of each part, the sizes, the name of the layout, and how it was determined."""
    part_of = {name: part for name, (part, _) in where.items()}
    present = set(part_of.values())
    fitting: dict[tuple[tuple[str, str], ...], tuple[Sizes, str]] = {}
    signed = ""
    words = {name.rsplit(".", 1)[-1].lstrip("_") for name in weights}
    pure = {one.name: {part: axes for part, (_, axes) in one.rows.items() if part in present} for one in candidates}
    trials = [*pure.items(), *(("mixed", axes) for axes in _mixtures(candidates, present))]
    misfits = []
    for name, axes in trials:
        try:
            sizes = solve(shapes, part_of, axes, known_sizes)
        except MisfitError as misfit:
            misfits += [f"as {name}, {misfit}"] if name in LAYOUTS else []
            continue
        fitting.setdefault(tuple(sorted(axes.items())), (sizes, name))
        signs = words & LAYOUTS[name].signs if name in LAYOUTS else None
        if signs and not signed:
            signed = min(signs)
            fitting = {tuple(sorted(axes.items())): (sizes, name)}
            break
    if not fitting:
        raise CheckpointError(f"{source}: its shapes fit no known layout: {'; '.join(misfits)}")
    if len(fitting) > 1:
        raise CheckpointError(f"{source}: {_either(fitting, part_of, shapes)}")
    (axes_found, (sizes, name)) = next(iter(fitting.items()))
    how = "as asked for (--layout)" if named else f"the only one with {signed}" if signed else "names and shapes fit"
    return dict(axes_found), sizes, name, how


def _mixtures(candidates: list[Layout], present: set[str]) -> Iterator[dict[str, str]]:
    """Every combination of orientations of the groups, for the family with names W_ only."""
    if len(candidates) < 2 or candidates[0].family != "W_":
        return
    for choice in product(candidates, repeat=len(TOGETHER)):
        layout_of = {part: one for group, one in zip(TOGETHER, choice, strict=True) for part in group}
        axes = {part: axes for part, (_, axes) in candidates[0].rows.items() if part in present}
        yield axes | {part: one.rows[part][1] for part, one in layout_of.items() if part in present}


def solve(
    shapes: Mapping[str, tuple[int, ...]],
    part_of: Mapping[str, str],
    axes: Mapping[str, str],
    known_sizes: Mapping[str, int],
) -> Sizes:
    """The size of every axis. Raises MisfitError where the shapes disagree with the axes or with each other."""
    of, known_from = dict(known_sizes), dict.fromkeys(known_sizes, STATED)
    joined: list[tuple[tuple[str, ...], int, str]] = []

    def note(axis: str, size: int, name: str) -> None:
        if of.setdefault(axis, size) != size:
            raise MisfitError(f"{axis} is {size} in {name} {list(shapes[name])}, {of[axis]} by {known_from[axis]}")
        if known_from.get(axis) in (None, STATED):
            known_from[axis] = name

    for name, shape in shapes.items():
        words = [tuple(word.strip("()").split()) for word in re.findall(r"\([^)]*\)|\S+", axes[part_of[name]])]
        if len(words) != len(shape):
            raise MisfitError(f"{name} {list(shape)} is not [{axes[part_of[name]]}]")
        for word, size in zip(words, shape, strict=True):
            if len(word) == 1:
                note(word[0], size, name)
            else:
                joined.append((word, size, name))
    open_ones: dict[tuple[str, ...], tuple[int, str]] = {}
    for (outer, inner), size, name in [*joined, *joined]:  # twice: the first pass may determine sizes
        known, missing = (outer, inner) if outer in of else (inner, outer)
        if known not in of:
            if open_ones.setdefault((outer, inner), (size, name))[0] != size:
                raise MisfitError(f"{outer}*{inner} is {size} in {name}, {open_ones[outer, inner][0]} elsewhere")
            continue
        if size % of[known]:
            raise MisfitError(f"{size} in {name} {list(shapes[name])} is not a multiple of {known} {of[known]}")
        note(missing, size // of[known], name)
        open_ones.pop((outer, inner), None)
    return Sizes(of, known_from, open_ones)


# ---------------------------------------------------------------------- messages


def _either(
    fitting: Mapping[tuple[tuple[str, str], ...], tuple[Sizes, str]],
    part_of: Mapping[str, str],
    shapes: Mapping[str, tuple[int, ...]],
) -> str:
    """The message for ambiguous shapes: an ambiguous weight, and the option that decides."""
    ways = [dict(axes) for axes in fitting]
    name = next(name for name, part in part_of.items() if len({way[part] for way in ways}) > 1)
    could = " or ".join(sorted({f"[{way[part_of[name]]}]" for way in ways}))
    layouts = [layout for _, layout in fitting.values() if layout in LAYOUTS]
    which = "|".join(layouts or LAYOUTS)
    return f"{name} {list(shapes[name])} could be {could}, and no other weight shows which: say --layout {which}"


def _hint(names: Iterable[str]) -> str:
    if any(name.startswith(("transformer.h.", "model.layers.", "gpt_neox.layers.")) for name in names):
        return "; these are names of Hugging Face: open the folder with its config.json as hf:PATH"
    return f"; known layouts: {', '.join(LAYOUTS)}"
