"""names and shapes -> parts: which weight of a decoder somebody else has written is which of ours, in every usual habit
of naming.

A name is read as modules in modules: the numbered list that holds attention is the list of blocks, the words of a
module say its part, and words of its parents whether it is of attention or of the feed-forward. Matrices and norms that
have only a number (`nn.Sequential`) are told by their order and their neighbours. A weight without a part
is returned as unknown.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import product
from math import prod

Shape = tuple[int, ...]


@dataclass(frozen=True)
class NamedPart:
    """Which part a weight is: a row of `formats.layouts.OURS`, or one that holds several of them.

    The others: `qkv` and `kv`, fused projections; `gate_in`, a gate and what it multiplies, fused; `ln1_post` and
    `ln2_post`, norms of what attention and feed-forward add. `.b` is the bias of each.
    """

    part: str
    layer: int | None = None
    head: int | None = None
    """Where each head is a module of its own."""


@dataclass(frozen=True)
class PartNames:
    """The part of each name, and the names that are no part of ours."""

    of: Mapping[str, NamedPart]
    unknown: tuple[str, ...]

    @property
    def n_layers(self) -> int:
        return 1 + max((at.layer for at in self.of.values() if at.layer is not None), default=-1)


def _words(*bases: str) -> frozenset[str]:
    """The habits of naming a projection after what it gives."""
    forms = (
        "{}", "w{}", "w{}s", "{}w", "{}proj", "proj{}", "{}projection", "{}lin", "lin{}", "{}linear", "linear{}",
        "to{}", "fc{}", "{}fc", "{}net", "{}layer", "{}weight", "{}map", "{}dense", "c{}", "{}matrix",
    )  # fmt: skip
    return frozenset(form.format(base) for form, base in product(forms, bases))


# Names of modules in lower case, without underscores.
PROJECTIONS: Mapping[str, frozenset[str]] = {
    "qkv": _words("qkv", "pack") | {"cattn", "attnin", "inproj", "querykeyvalue"},
    "kv": _words("kv", "keyvalue"),
    "q": _words("q", "query", "queries"),
    "k": _words("k", "key", "keys"),
    "v": _words("v", "value", "values"),
}
ATTENTION_OUT = _words("o", "out", "output") | {
    "cproj", "proj", "projection", "dense", "unifyheads", "combine", "mergeheads", "fco", "outprojection", "linear",
    "attnproj", "attnout", "fc", "lin",
}  # fmt: skip
FEED_FORWARD: Mapping[str, frozenset[str]] = {
    "gate_in": frozenset({"gateupproj", "gateup", "w12", "upgateproj"}),
    "gate": _words("gate") | {"wi0", "wg"},
    "in": _words("up", "in", "input", "intermediate", "expand", "hidden", "inner")
    | {"cfc", "fc1", "linear1", "lin1", "dense1", "densehto4h", "fc", "wi", "wi1", "l1", "layer1", "ff1", "w1", "proj1",
       "linear", "wfc"},
    "out": _words("down", "out", "output", "contract", "outer")
    | {"cproj", "fc2", "linear2", "lin2", "dense2", "dense4htoh", "wo", "l2", "layer2", "ff2", "w2", "proj2", "proj",
       "wproj", "dense"},
}  # fmt: skip
OUT_OF_ATTENTION_ALONE = _words("o") | {
    "outproj",
    "toout",
    "unifyheads",
    "attnproj",
    "attnout",
    "out",
    "output",
    "proj",
}
"""Names of the output of attention that need no parent which says attention."""
ATTENTION = re.compile(r"att|^sa$|^mha$|^heads$|multihead")
FEEDING = re.compile(r"mlp|^ff|ffn|ffwd|feedforward|^net$")
NORM = re.compile(r"norm|^ln|ln$|^ln\d?$|rms|^layernorm")
HEAD = re.compile(
    r"unembed|lmhead|head|logits|decoder|classifier|embedout|generator|readout|vocabproj|^wu$|^(fc|linear|lin)?(out|output"
    r"|final)(put)?(proj|projection|layer|linear|fc)?$|^(fc|linear|lin|proj|projection|final|projout|fcf)$"
)
EMBEDDING = re.compile(r"emb|^wte$|^we$|^tok(en)?s?(table)?$|^encoder$|^shared$|^lut$")
POSITION = re.compile(r"^wpe$|^pe$|^pos(?!t)|pos(ition)?s?(al)?(emb|enc)|embedpos|posemb")
SCALES, SHIFTS = ("weight", "w", "scale", "gamma", "g", "gain"), ("bias", "b", "shift", "beta")
WRAPPED = ("dense", "linear", "lin", "layer", "conv", "fn", "proj", "net", "module", "_orig_mod", "base_layer")
"""Last words that say less than the module around them."""


def flat(word: str) -> str:
    return word.replace("_", "").lower()


def _is_half(word: str) -> bool:
    """Whether a word says attention or feed-forward."""
    return bool(ATTENTION.search(flat(word)) or FEEDING.search(flat(word)))


@dataclass
class _Module:
    """A module with weights of its own: its path, and the names of its weight and its bias."""

    path: tuple[str, ...]
    weight: str | None = None
    bias: str | None = None
    shape: Shape = ()
    layer: int | None = None
    inner: tuple[str, ...] = ()
    """The path within its block; the whole path outside of blocks."""
    part: str | None = None
    head: int | None = None

    @property
    def words(self) -> list[str]:
        return [flat(word) for word in self.inner]

    @property
    def leaf(self) -> str:
        """The last word that says something."""
        telling = [word for word in self.inner if not word.isdigit()]
        while len(telling) > 1 and telling[-1] in WRAPPED and not _is_half(telling[-2]):
            telling.pop()
        return flat(telling[-1]) if telling else ""

    @property
    def is_numbered(self) -> bool:
        """Whether it has only a number in its parent."""
        return bool(self.inner) and self.inner[-1].isdigit()

    @property
    def is_vector(self) -> bool:
        return prod(self.shape) == max(self.shape, default=0)


def named_parts(shapes: Mapping[str, Shape]) -> PartNames:
    """The part of each weight; buffers such as masks are not to be among them."""
    modules = _modules(shapes)
    _find_blocks(modules)
    layers: dict[int | None, list[_Module]] = {}
    for module in modules:
        layers.setdefault(module.layer, []).append(module)
    for layer, of_layer in layers.items():
        if layer is None:
            _outside(of_layer)
        else:
            _in_block(of_layer)
    of: dict[str, NamedPart] = {}
    seen: set[NamedPart] = set()
    for module in modules:
        for name, ending in ((module.weight, ""), (module.bias, ".b")):
            if name is None or module.part is None:
                continue
            at = NamedPart(module.part + ending, module.layer, module.head)
            if at not in seen:  # a second weight of a part is not known
                of[name] = at
                seen.add(at)
    return PartNames(of, tuple(name for name in shapes if name not in of))


def _modules(shapes: Mapping[str, Shape]) -> list[_Module]:
    """Weights and biases together; a raw parameter (`W_Q`, `in_proj_weight`) is a module of its own."""
    modules: dict[tuple[str, ...], _Module] = {}
    for name, shape in shapes.items():
        *parents, last = name.split(".")
        is_bias = last.lower() in SHIFTS
        if not parents or not (is_bias or last.lower() in SCALES):
            ending = re.fullmatch(r"(.+)_(weight|bias)", last)
            is_bias = last.startswith("b_") or (ending is not None and ending[2] == "bias")
            parents.append(ending[1] if ending else re.sub("^b_", "W_", last))
        module = modules.setdefault(tuple(parents), _Module(tuple(parents), inner=tuple(parents)))
        if is_bias:
            module.bias = name
        else:
            module.weight, module.shape = name, shape
    return list(modules.values())


# ---------------------------------------------------------------------- blocks


def _find_blocks(modules: list[_Module]) -> None:
    """Sets `layer` and `inner` of each module in a block."""
    attending = [one for one in modules if one.leaf in PROJECTIONS["q"] | PROJECTIONS["qkv"] and not one.is_vector]
    found = _block_list(attending, modules)
    if found is None:
        _one_block(modules, attending)
        return
    block, first = found
    layers = {number for number in _numbers(block, modules, of_blocks=True) if number >= first}
    others: dict[tuple[str, ...], set[int]] = {}
    for one in modules:
        at = next((i for i, word in enumerate(one.path) if word.isdigit()), None)
        if (
            at is not None
            and one.path[:at] != block
            and re.search(f"{FEEDING.pattern}|norm|ln", flat(one.path[at - 1]))
        ):
            others.setdefault(one.path[:at], set()).add(int(one.path[at]))
    lists = [block, *(path for path, indices in others.items() if indices == layers)]
    for one in modules:
        for path in lists:
            n = len(path)
            if one.path[:n] == path and len(one.path) > n and one.path[n].isdigit() and int(one.path[n]) in layers:
                one.layer = int(one.path[n]) - first
                one.inner = one.path[n + 1 :] if path == block else (*path[-1:], *one.path[n + 1 :])


def _block_list(attending: Iterable[_Module], modules: Iterable[_Module]) -> tuple[tuple[str, ...], int] | None:
    """The path of the list of blocks, the outermost whose numbers count attention, and the number of the first block:
    above 0 only where others have the numbers before it, as in `nn.Sequential(embedding, block, block, head)`.
    """
    lists: dict[tuple[str, ...], set[int]] = {}
    for one in attending:
        for i, word in enumerate(one.path):
            if word.isdigit() and not (i and one.path[i - 1].lower().endswith("heads")):
                lists.setdefault(one.path[:i], set()).add(int(word))
    paths = sorted(lists, key=len)
    for path in paths:
        if lists[path] == set(range(len(lists[path]))):
            return path, 0
    for path in paths:
        first = min(lists[path])
        before = _numbers(path, modules, of_blocks=False) - _numbers(path, modules, of_blocks=True)
        if lists[path] == set(range(first, first + len(lists[path]))) and set(range(first)) <= before:
            return path, first
    return (paths[0], 0) if paths else None


def _numbers(path: tuple[str, ...], modules: Iterable[_Module], of_blocks: bool) -> set[int]:
    """The numbers in a list, of all its members or of those with a part of attention or feed-forward."""
    n = len(path)
    members = [one for one in modules if one.path[:n] == path and len(one.path) > n and one.path[n].isdigit()]
    projections = frozenset[str]().union(*PROJECTIONS.values())
    return {
        int(one.path[n])
        for one in members
        if not of_blocks or one.leaf in projections or any(map(_is_half, one.path[n + 1 :]))
    }


def _one_block(modules: list[_Module], attending: list[_Module]) -> None:
    """A model of one block that is in no list: `attn.q.weight`, `mlp.0.weight`, beside `embed.weight`."""
    if not attending:
        return
    around = attending[0].path[:-2] if len(attending[0].path) > 2 else ()
    if around and not any(one.path[: len(around)] != around for one in modules):
        around = ()
    for one in modules:
        if around:
            inside = one.path[: len(around)] == around
        else:
            inside = any(map(_is_half, one.path)) or any(one.leaf in words for words in PROJECTIONS.values())
            inside |= bool(re.fullmatch(r"(ln|norm|layernorm)[12]|fc[12]|linear[12]|lin[12]", one.leaf))
        if inside:
            one.layer, one.inner = 0, one.path[len(around) :]


def _in_block(modules: list[_Module]) -> None:
    """Sets `part` and `head` of the modules of a block."""
    for one in modules:
        if one.is_vector and one.weight is not None:
            continue
        one.part = _matrix(one)
        numbers = [int(word) for word in one.inner[:-1] if word.isdigit()]
        if one.part in ("q", "k", "v") and numbers and any(flat(word).startswith("head") for word in one.inner):
            one.head = numbers[-1]
    for part, names in (("o", OUT_OF_ATTENTION_ALONE), ("out", FEED_FORWARD["out"])):
        outs = [one for one in modules if one.part is None and one.leaf in names and not one.is_vector]
        if len(outs) == 1 and not any(one.part == part for one in modules):
            outs[0].part = part
    _in_order([one for one in modules if one.part is None and one.weight and not one.is_vector], modules)
    if any(one.leaf == "w3" for one in modules):  # the names of Llama's own code
        for one in modules:
            one.part = {"w1": "gate", "w2": "out", "w3": "in"}.get(one.leaf, one.part)
    _norms_of_block([one for one in modules if one.is_vector and one.weight is not None], modules)


def _matrix(one: _Module) -> str | None:
    """The part of a matrix by its words; None where they do not tell."""
    parents = [word for word in one.words[:-1] if word != one.leaf]
    feeding = any(FEEDING.search(word) for word in parents)
    attention = any(ATTENTION.search(word) for word in parents) and not feeding
    if not feeding:
        for part, words in PROJECTIONS.items():
            if one.leaf in words:
                return part
    if one.is_numbered and FEEDING.search(one.leaf):
        return None  # told by their order
    if attention:
        return "o" if one.leaf in ATTENTION_OUT else None
    if not feeding and one.leaf in OUT_OF_ATTENTION_ALONE:
        return None  # of attention or of the feed-forward: told by which of them has another
    return next((part for part, words in FEED_FORWARD.items() if one.leaf in words), None)


def _in_order(unnamed: list[_Module], modules: list[_Module]) -> None:
    """Matrices of a feed-forward that have only numbers: the first goes in, the second out."""
    numbered = [one for one in unnamed if one.is_numbered]
    if len(numbered) == 2 == len(unnamed) and not any(one.part in ("in", "out") for one in modules):
        first, second = sorted(numbered, key=lambda one: [int(w) if w.isdigit() else -1 for w in one.inner])
        first.part, second.part = "in", "out"


def _norms_of_block(norms: list[_Module], modules: list[_Module]) -> None:
    """Sets the part of each norm: by its words, or by the matrices that share its parent."""
    after = {one.leaf for one in norms}
    sandwich = any(leaf.startswith("prefeedforward") for leaf in after)
    output = not sandwich and any(leaf.startswith("postfeedforward") for leaf in after)
    single = len([one for one in norms if _query_or_key(one) is None]) == 1
    for one in norms:
        leaf = one.leaf
        if (named := _query_or_key(one)) is not None:
            one.part = named
        elif leaf.startswith("postfeedforward"):
            one.part = "ln2_post" if sandwich else "ln2"
        elif leaf.startswith("postattention"):
            one.part = "ln1_post" if sandwich else "ln1" if output else "ln2"
        elif not (NORM.search(leaf) or one.is_numbered):
            continue
        elif (by_word := _slot(leaf)) is not None:
            one.part = by_word
        elif single:
            one.part = "ln1"
        else:
            one.part = _slot_by_neighbours(one, modules)


def _query_or_key(one: _Module) -> str | None:
    found = re.fullmatch(r"(q|k|query|key)(layer)?(norm|ln)|(norm|ln)(q|k|query|key)", one.leaf)
    return None if found is None else f"{(found[1] or found[5])[0]}_norm"


def _slot(leaf: str) -> str | None:
    """`ln1` or `ln2` by the words of a norm."""
    if re.search(r"2$|^(ln|norm|layernorm)2|ffn|mlp|ff|feed|^final", leaf):
        return "ln2"
    return "ln1" if re.search(r"1$|^(ln|norm|layernorm)1|att|input|^sa|sa(ln|norm)", leaf) else None


def _slot_by_neighbours(norm: _Module, modules: list[_Module]) -> str | None:
    """`ln1` beside the queries, `ln2` beside the feed-forward: by the innermost parent that holds one of them."""
    for depth in range(len(norm.inner) - 1, -1, -1):
        beside = {one.part for one in modules if one.inner[:depth] == norm.inner[:depth]}
        attends, feeds = beside & {"q", "qkv", "o"}, beside & {"in", "gate", "gate_in", "out"}
        if attends or feeds:
            return "ln1" if not feeds else "ln2" if not attends else None
    return None


# ---------------------------------------------------------------------- outside of the blocks


def _outside(modules: list[_Module]) -> None:
    """Sets the part of embeddings, final norm and head."""
    for one in modules:
        words = [word for word in one.words if not word.isdigit()]
        if any(POSITION.search(word) for word in words):
            one.part = "pos"
        elif one.weight is not None and one.is_vector and len(one.shape) == 1:
            early = re.search("emb|^in|^pre(?!d)|tok", one.leaf) is not None
            one.part = "ln_final" if not early and (NORM.search(one.leaf) or one.is_numbered) else None
        elif HEAD.search(one.leaf):
            one.part = "unembed"
        elif EMBEDDING.search(one.leaf) or (len(words) > 1 and EMBEDDING.search(words[-2])):
            one.part = "embed"
