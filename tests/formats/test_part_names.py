"""Every habit of naming is read; what is no part of ours is returned as unknown."""

import re

import pytest

from algoscope.formats._part_names import PartNames, named_parts
from module_zoo import CONVERTIBLE, REFUSED, STYLES


def of_style(name: str, **sizes: int) -> PartNames:
    module = STYLES[name].make(**sizes)
    buffers = {name for name, _ in module.named_buffers() if not name.endswith("pe")}
    return named_parts({n: tuple(w.shape) for n, w in module.state_dict().items() if n not in buffers})


def parts(of: PartNames, layer: int | None) -> set[str]:
    return {at.part for at in of.of.values() if at.layer == layer}


@pytest.mark.parametrize("n_layers", [1, 3])
@pytest.mark.parametrize("name", CONVERTIBLE)
def test_every_weight_of_every_style_has_its_part(name: str, n_layers: int) -> None:
    named = of_style(name, n_layers=n_layers)
    assert not named.unknown
    assert named.n_layers == n_layers
    assert "embed" in parts(named, None)
    assert all(parts(named, layer) == parts(named, 0) for layer in range(n_layers))
    assert {"q", "k", "v", "o"} <= parts(named, 0) or {"qkv", "o"} <= parts(named, 0)
    if not name.startswith("attention only"):
        assert {"in", "out", "ln1"} <= parts(named, 0)


@pytest.mark.parametrize("name", [name for name in REFUSED if name != "linear attention"])  # its weights are usual
def test_a_part_that_is_not_ours_is_unknown(name: str) -> None:
    assert any(re.search(STYLES[name].part or "", weight) for weight in of_style(name).unknown)


NAMES = {
    "a lone block": (
        {
            "embed.weight": (9, 4), "attn.W_q.weight": (4, 4), "attn.W_k.weight": (4, 4), "attn.W_v.weight": (4, 4),
            "attn.W_o.weight": (4, 4), "mlp.0.weight": (7, 4), "mlp.2.weight": (4, 7), "head.weight": (9, 4),
        },
        {"attn.W_o.weight": "o", "mlp.0.weight": "in", "mlp.2.weight": "out", "head.weight": "unembed"},
    ),
    "everything in a Sequential": (
        {
            "0.weight": (9, 4), "1.attn.qkv.weight": (12, 4), "1.attn.out.weight": (4, 4), "2.attn.qkv.weight": (12, 4),
            "2.attn.out.weight": (4, 4),
        },
        {"1.attn.qkv.weight": "qkv", "2.attn.out.weight": "o"},
    ),
    "blocks in two lists": (
        {
            "emb.weight": (9, 4), "attns.0.q.weight": (4, 4), "attns.0.k.weight": (4, 4), "attns.0.v.weight": (4, 4),
            "attns.0.out.weight": (4, 4), "mlps.0.up.weight": (7, 4), "mlps.0.down.weight": (4, 7),
            "norms1.0.weight": (4,), "norms2.0.weight": (4,),
        },
        {"mlps.0.up.weight": "in", "mlps.0.down.weight": "out", "attns.0.out.weight": "o"},
    ),
    "names of BERT": (
        {
            "embeddings.word_embeddings.weight": (9, 4), "embeddings.position_embeddings.weight": (5, 4),
            "layer.0.attention.self.query.weight": (4, 4), "layer.0.attention.self.key.weight": (4, 4),
            "layer.0.attention.self.value.weight": (4, 4), "layer.0.attention.output.dense.weight": (4, 4),
            "layer.0.attention.output.LayerNorm.weight": (4,), "layer.0.intermediate.dense.weight": (7, 4),
            "layer.0.output.dense.weight": (4, 7), "layer.0.output.LayerNorm.weight": (4,),
        },
        {
            "embeddings.position_embeddings.weight": "pos", "layer.0.attention.output.dense.weight": "o",
            "layer.0.intermediate.dense.weight": "in", "layer.0.output.dense.weight": "out",
            "layer.0.attention.output.LayerNorm.weight": "ln1", "layer.0.output.LayerNorm.weight": "ln2",
        },
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", NAMES)
def test_other_structures(case: str) -> None:
    shapes, expected = NAMES[case]
    named = named_parts(shapes)
    assert {name: named.of[name].part for name in expected} == expected
    assert {named.of[name].layer for name in expected} - {None} == set(range(named.n_layers))


def test_blocks_that_are_missing_are_not_passed_over() -> None:
    at = [f"h.{layer}.attn.{part}.weight" for layer in (1, 3) for part in ("q", "k", "v", "o")]
    named = named_parts({"wte.weight": (9, 4), **dict.fromkeys(at, (4, 4))})
    assert {named.of[name].layer for name in at} == {1, 3}
    assert named.n_layers == 4


def test_weights_of_no_transformer_are_unknown() -> None:
    assert named_parts({"a": (3,), "conv.weight": (4, 4, 3)}).of == {}
    assert named_parts({}).n_layers == 0
