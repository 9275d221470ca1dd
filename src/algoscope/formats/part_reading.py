"""named tensors -> layout, for files whose names are of no layout of `formats.layouts`.

Every name is read as a part (`_part_names`), fused projections are divided, heads that are modules of their own are put
together, and the sizes follow from the shapes. What no shape shows is a choice (`layouts.CHOICES`): how a fused
projection is divided, which entries of a head are rotated together, which axis of a square matrix is its input.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import product

import torch
from torch import Tensor

from algoscope.core.errors import CheckpointError, some_of
from algoscope.formats._part_names import NamedPart, named_parts
from algoscope.formats.layout_reading import (
    LayoutReading,
    MisfitError,
    OpenChoice,
    Sizes,
    aliases,
    complete_parts,
    divisors,
    solve,
)
from algoscope.formats.layouts import CHOICES, OURS, UNGATED, Layout, Row, reorder_axes

_MASKS = re.compile(r"(^|[._])(attn_|causal_|attention_)?(mask|tril|triu|causal|bias)$|IGNORE|(^|[._])allowed$")
_OTHERS = re.compile(
    r"(^|[._])(masked_bias|position_ids|inv_freq|rotary_(sin|cos)|(cos|sin)(_cached)?|freqs(_cis|_cos|_sin)?|alibi|slopes)$"
)
_OF_THE_LIBRARY = {
    r"pre_feedforward_layernorm": "of Gemma, whose norms and embeddings have factors that no weight shows",
    r"decoder\.embed_positions": "of OPT, whose positions start at a later row",
}
"""Names of models of Hugging Face of which the weights alone say less than they seem to."""
_MATRICES = {"q", "k", "v", "o", "in", "gate", "out", "qkv", "kv", "gate_in"}
_AXES: dict[str, dict[str, dict[int, str]]] = {
    "out-in": {
        "q": {2: "(head d_head) d_model", 3: "head d_head d_model"},
        "k": {2: "(kv_head d_head) d_model", 3: "kv_head d_head d_model"},
        "v": {2: "(kv_head d_head) d_model", 3: "kv_head d_head d_model"},
        "o": {2: "d_model (head d_head)", 3: "d_model head d_head"},
        "in": {2: "d_mlp d_model"}, "gate": {2: "d_mlp d_model"}, "out": {2: "d_model d_mlp"},
        "unembed": {2: "d_vocab_out d_model"},
    },
    "in-out": {
        "q": {2: "d_model (head d_head)", 3: "head d_model d_head"},
        "k": {2: "d_model (kv_head d_head)", 3: "kv_head d_model d_head"},
        "v": {2: "d_model (kv_head d_head)", 3: "kv_head d_model d_head"},
        "o": {2: "(head d_head) d_model", 3: "head d_head d_model"},
        "in": {2: "d_model d_mlp"}, "gate": {2: "d_model d_mlp"}, "out": {2: "d_mlp d_model"},
        "unembed": {2: "d_model d_vocab_out"},
    },
}  # fmt: skip
Key = tuple[str, int | None]  # part and layer


@dataclass
class _Parts:
    """Weights by part and layer, and the name of each in the file."""

    weights: dict[Key, Tensor] = field(default_factory=dict)
    names: dict[Key, str] = field(default_factory=dict)
    divided: set[str] = field(default_factory=set)
    """Parts of fused projections, which are [out in] since they were divided."""
    turned: dict[bool, str] = field(default_factory=dict)
    """The orientation of matrices of modules (False) and of raw parameters (True), where a fused one shows it."""

    def add(self, key: Key, weight: Tensor, name: str) -> None:
        self.weights[key], self.names[key] = weight, name

    def take(self, part: str) -> list[tuple[int | None, Tensor, str]]:
        """Those of a part, which are removed."""
        keys = [key for key in self.weights if key[0] == part]
        return [(key[1], self.weights.pop(key), self.names.pop(key)) for key in keys]

    def first(self, part: str) -> Tensor | None:
        return next((weight for (one, _), weight in self.weights.items() if one == part), None)

    def is_raw(self, key: Key) -> bool:
        """Whether a weight is a parameter by itself, whose axes no module orders."""
        return not self.names[key].endswith("weight")

    @property
    def raw_matrix(self) -> str | None:
        """The name of a matrix that is a parameter by itself."""
        matrices = (key for key in self.names if key[0] in _MATRICES and key[0] not in self.divided)
        return next((self.names[key] for key in matrices if self.is_raw(key)), None)


def split_buffers(weights: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The weights, and the buffers: masks, by name and values, and what follows from sizes alone, by its name."""
    buffers = {name: value for name, value in weights.items() if _OTHERS.search(name) or _is_mask(name, value)}
    return {name: value for name, value in weights.items() if name not in buffers}, buffers


def _is_mask(name: str, value: Tensor) -> bool:
    if not _MASKS.search(name):
        return False
    square = value.ndim >= 2 and value.shape[-1] ** 2 == value.numel() == value.shape[-2] ** 2
    return value.numel() == 1 if value.ndim == 0 else square and len(value.unique()) <= 2


def n_unknown(weights: Mapping[str, Tensor]) -> int:
    """How many weights have no part by the habits of naming."""
    return len(named_parts({name: tuple(value.shape) for name, value in split_buffers(weights)[0].items()}).unknown)


def parts_to_layout(
    weights: Mapping[str, Tensor], known_sizes: Mapping[str, int], read_as: Mapping[str, str], source: str
) -> LayoutReading:
    """Weights of any habit of naming under our names.

    `known_sizes` are those given by a config or the settings, `read_as` the choices among `CHOICES` that are given.
    Raises CheckpointError, naming `source`, for weights that are no part of our model, missing parts and shapes that
    disagree, and OpenChoice for a choice that is needed.
    """
    rest, buffers = split_buffers(weights)
    for pattern, why in _OF_THE_LIBRARY.items():
        if name := next((name for name in rest if re.search(pattern, name)), None):
            raise CheckpointError(f"{source} has {name!r}, {why}: open the folder with its config.json as hf:PATH")
    named = named_parts({name: tuple(value.shape) for name, value in rest.items()})
    left_out = aliases(rest, named.of, source)
    if not any(at.part == "embed" for at in named.of.values()):
        raise CheckpointError(
            f"{source} lacks a token embedding, such as 'embed.weight'; it has {some_of(map(repr, rest))}"
        )
    parts = _together({name: (at, rest[name]) for name, at in named.of.items()}, source)
    choices = {"rotary_pairs": read_as.get("rotary_pairs") or _usual_pairs(rest)}
    d_model = _d_model(parts)
    _divide(parts, d_model, known_sizes, read_as, choices, source)
    one_norm = _share_norm(parts)
    axes, sizes, how = _find_axes(parts, d_model, known_sizes, read_as.get("matrices"), source)
    rows: dict[str, Row] = {}
    for (part, layer), name in parts.names.items():
        rows.setdefault(part, (name if layer is None else name.replace(f".{layer}.", ".*.", 1), axes[part]))
    names = Layout("by name", "names of any habit", "named", rows)
    present = complete_parts({str(key): key for key in parts.names}, names, source)
    ours, weights_by_name = OURS if "gate" in present else UNGATED, {}
    for (part, layer), value in parts.weights.items():
        here, wanted = ours[part]
        reordered = value if value.ndim == 1 else reorder_axes(value, axes[part], wanted, sizes.of)
        weights_by_name[here.replace("*", str(layer))] = reordered.contiguous()
    return LayoutReading(
        "by name",
        how,
        names,
        weights_by_name,
        present,
        sizes,
        named.n_layers,
        buffers,
        tuple(left_out),
        choices,
        one_norm,
    )


def _usual_pairs(names: Iterable[str]) -> str:
    """Which entries of a head are usually rotated together, by the habit of naming: the code that calls its matrices wq
    and wk multiplies complex numbers.
    """
    return "neighbours" if any(re.search(r"(^|\.)wq\.weight$", name) for name in names) else "halves"


def _together(named: Mapping[str, tuple[NamedPart, Tensor]], source: str) -> _Parts:
    """The weights by part and layer; heads that are modules of their own as one weight with an axis of heads."""
    parts, heads = _Parts(), dict[Key, dict[int, tuple[Tensor, str]]]()
    for name, (at, value) in named.items():
        if not value.is_floating_point():
            raise CheckpointError(f"{source}: {name} is of the type {value.dtype}: weights are floats")
        if at.part == "pos":
            value = value.reshape(-1, value.shape[-1]) if value.ndim > 2 else value
        elif value.ndim > 1 and value.numel() == value.shape[-1] and at.part[:2] == "ln":
            value = value.flatten()
        if at.head is None:
            parts.add((at.part, at.layer), value, name)
        else:
            heads.setdefault((at.part, at.layer), {})[at.head] = value, name
    for key, of_head in heads.items():
        values = [of_head[head][0] for head in sorted(of_head)]
        if len({value.shape for value in values}) > 1:
            raise CheckpointError(f"{source}: heads of unequal shapes, as {of_head[0][1]}: our heads are of one size")
        parts.add(key, torch.stack(values), next(iter(of_head.values()))[1])
    return parts


def _d_model(parts: _Parts) -> int:
    """The axis of the embedding that the matrices of the blocks have too."""
    embed = parts.first("embed")
    assert embed is not None
    matrices = [weight for (part, _), weight in parts.weights.items() if part in _MATRICES]
    sizes = [size for size in reversed(embed.shape) if all(size in weight.shape for weight in matrices)]
    return sizes[0] if sizes else embed.shape[-1]


# ---------------------------------------------------------------------- fused projections


def _divide(
    parts: _Parts,
    d_model: int,
    known_sizes: Mapping[str, int],
    read_as: Mapping[str, str],
    choices: dict[str, str],
    source: str,
) -> None:
    """Replaces fused projections by their parts; what was chosen for it is added to `choices`."""
    out = parts.first("o")
    width = None if out is None else out.numel() // d_model  # heads times their size
    for fused, members in (("qkv", "qkv"), ("kv", "kv")):
        for ending in ("", ".b"):
            for layer, weight, name in parts.take(fused + ending):
                by_head = name.split(".")[-2:-1] == ["query_key_value"]
                order = choices["qkv"] = read_as.get("qkv") or ("per-head" if by_head else "blocks")
                rows = _rows_first(parts, weight, d_model, read_as, source, name)
                parts.divided |= {*members}
                for part, value in _divided(rows, members, order, width, known_sizes, source, name).items():
                    parts.add((part + ending, layer), value, name)
    for ending in ("", ".b"):
        for layer, weight, name in parts.take(f"gate_in{ending}"):
            order = choices["gate_up"] = read_as.get("gate_up") or "gate-first"
            first, second = _rows_first(parts, weight, d_model, read_as, source, name).chunk(2)
            parts.divided |= {"gate", "in"}
            gate, up = (first, second) if order == "gate-first" else (second, first)
            parts.add((f"gate{ending}", layer), gate, name)
            parts.add((f"in{ending}", layer), up, name)


def _rows_first(
    parts: _Parts, weight: Tensor, d_model: int, read_as: Mapping[str, str], source: str, name: str
) -> Tensor:
    """A fused weight [out in], whatever its orientation, which is that of the other matrices too."""
    if weight.ndim == 1:
        return weight
    if weight.ndim != 2 or d_model not in weight.shape:
        raise CheckpointError(f"{source}: {name} {list(weight.shape)} is no fused matrix of d_model {d_model}")
    square = weight.shape[0] == weight.shape[1]
    turned = read_as.get("matrices") == "in-out" if square else weight.shape[1] != d_model
    if not square:
        parts.turned[not name.endswith("weight")] = "in-out" if turned else "out-in"
    return weight.T if turned else weight


def _divided(
    rows: Tensor,
    members: str,
    order: str,
    width: int | None,
    known_sizes: Mapping[str, int],
    source: str,
    name: str,
) -> dict[str, Tensor]:
    """Queries, keys and values of a fused projection, of equal sizes, or with fewer keys and values in blocks."""
    total = len(rows)
    if (
        order == "blocks"
        and members == "qkv"
        and width
        and total != 3 * width
        and (total - width) % 2 == 0 < total - width
    ):
        return dict(zip(members, rows.split([width, (total - width) // 2, (total - width) // 2]), strict=True))
    if total % len(members):
        raise CheckpointError(f"{source}: {name} {list(rows.shape)} cannot be divided into {', '.join(members)}")
    if order == "blocks":
        return dict(zip(members, rows.chunk(len(members)), strict=True))
    each = total // len(members)
    heads = known_sizes.get("head")
    if heads is None:
        raise OpenChoice(
            "model.n_heads",
            divisors(each),
            f"{source}: {name} has queries, keys and values head by head, and no shape shows how many heads there are: "
            "--set model.n_heads=N",
        )
    if each % heads:
        raise CheckpointError(f"{source}: the {each} entries of {name} cannot be divided into {heads} heads")
    by_head = rows.unflatten(0, (heads, len(members), each // heads))
    return {part: by_head[:, i].flatten(0, 1) for i, part in enumerate(members)}


def _share_norm(parts: _Parts) -> bool:
    """Where a block with a feed-forward has one norm, both halves read it: it is copied. Whether there was one."""
    has = {part for part, _ in parts.weights}
    if "ln1" not in has or "ln2" in has or not has & {"in", "gate"}:
        return False
    for ending in ("", ".b"):
        for key in [key for key in parts.weights if key[0] == f"ln1{ending}"]:
            parts.add((f"ln2{ending}", key[1]), parts.weights[key].clone(), parts.names[key])
    return True


# ---------------------------------------------------------------------- axes


def _find_axes(
    parts: _Parts, d_model: int, known_sizes: Mapping[str, int], asked: str | None, source: str
) -> tuple[dict[str, str], Sizes, str]:
    """The axes of each part, the sizes, and how the orientation was determined."""
    labels = {key: f"{name} ({key[0]})" if list(parts.names.values()).count(name) > 1 else name
              for key, name in parts.names.items()}  # fmt: skip
    shapes = {labels[key]: tuple(weight.shape) for key, weight in parts.weights.items()}
    part_of = {labels[key]: key[0] for key in parts.weights}
    both, misfit = CHOICES["matrices"], ""
    fits: dict[str, tuple[dict[str, str], Sizes]] = {}
    of_modules = (parts.turned[False],) if False in parts.turned else both
    of_raw = (asked,) if asked else (parts.turned[True],) if True in parts.turned else both
    for raw, modules, head in product(of_raw if parts.raw_matrix else both[:1], of_modules, both):
        if raw in fits:
            continue
        turned = {False: modules, True: raw}
        axes = {key[0]: _axes(key, turned, head, d_model, parts) for key in parts.weights}
        try:
            fits[raw] = axes, solve(shapes, part_of, axes, known_sizes)
        except MisfitError as error:
            misfit = misfit or str(error)
    if not fits:
        raise CheckpointError(f"{source}: its shapes fit no decoder: {misfit}")
    if len(fits) > 1:
        raise OpenChoice(
            "weights.matrices",
            both,
            f"{source}: no shape shows which axis of {parts.raw_matrix} is its input: "
            f"--set weights.matrices={'|'.join(both)}",
        )
    axes, sizes = next(iter(fits.values()))
    return axes, sizes, "names of its parts, and shapes"


def _axes(key: Key, turned: Mapping[bool, str], head: str, d_model: int, parts: _Parts) -> str:
    """The axes of a part at one orientation of matrices, by whether they are raw, and of the unembedding."""
    part, weight = key[0], parts.weights[key]
    if part == "embed":
        return "d_model d_vocab" if weight.shape[-1] != d_model else "d_vocab d_model"
    if part in ("q.b", "k.b", "v.b") and weight.ndim == 2:
        return f"{'head' if part == 'q.b' else 'kv_head'} d_head"
    if part in ("q_norm", "k_norm"):
        projection = parts.first(part[0])
        whole = projection is not None and projection.numel() == weight.numel() * d_model
        return ("(head d_head)" if part == "q_norm" else "(kv_head d_head)") if whole else "d_head"
    matrices = "out-in" if part in parts.divided else turned[parts.is_raw(key)]
    known = _AXES[head if part == "unembed" else matrices].get(part, {}).get(weight.ndim)
    return known or OURS[part][1]
