"""State dictionaries of every habit of naming: read with the module's logits, asked for what shapes do not show, or
refused by the name of the part.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import algoscope as ag
from algoscope.core.errors import AlgoscopeError, CheckpointError
from algoscope.formats.model_building import file_to_model
from foreign_models import close, grokking, grokking_logits, how, read, saved
from hf_models import make
from module_zoo import CONVERTIBLE, REFUSED, STYLES, logits_of, slug
from module_zoo import saved as save_module

SCALED = {"model.embed_scale": 24**0.5}
SETTINGS: dict[str, dict[str, Any]] = {
    "pattern gpt": {"model.act_fn": "gelu"},
    "mingpt": {"model.act_fn": "gelu_tanh"},
    "course": {"model.act_fn": "gelu_tanh"},
    "textbook": {"model.act_fn": "gelu_tanh"},
    "textbook with qkv bias": {"model.act_fn": "gelu_tanh"},
    "conv1d": {"model.act_fn": "gelu_tanh"},
    "proj rotary, halves": {"model.positions": "rotary", "model.eps": 1e-6},
    "proj rotary, interleaved": {
        "model.positions": "rotary", "model.eps": 1e-6, "weights.rotary_pairs": "neighbours",
    },
    "complex rotary": {"model.positions": "rotary"},
    "to_qkv": {"model.act_fn": "gelu"},
    "encoder layers, post-norm": SCALED,
    "encoder layers, pre-norm": SCALED | {"model.act_fn": "gelu"},
    "encoder layers in a list": SCALED | {"model.norms": "pre"},
    "encoder layers, post-norm and a final norm": SCALED | {"model.norms": "post"},
    "fused per head, parallel": {
        "model.positions": "rotary", "model.rotary_dim": 4, "model.parallel": True, "model.act_fn": "gelu",
    },
    "fused per head, in sequence": {"model.act_fn": "gelu"},
    "alibi": {"model.act_fn": "silu"},
    "parallel, one norm": {"model.act_fn": "gelu"},
    "tied head with a bias, no final norm": {"model.act_fn": "tanh", "model.norms": "pre"},
    "untied, output a dictionary": {"model.act_fn": "tanh"},
    "untied, output a dataclass": {"model.act_fn": "tanh"},
}  # fmt: skip
"""What no weight of a style shows and is not its usual value."""
SHOW_HEADS = ("course", "lecture")
ENDINGS = (".pt", ".safetensors", ".npz")


def settings(name: str) -> dict[str, Any]:
    style = STYLES[name]
    heads = {} if name in SHOW_HEADS else {"model.n_heads": style.n_heads}
    return {"p": style.d_vocab - 2} | heads | SETTINGS.get(name, {})


@pytest.mark.parametrize("name", CONVERTIBLE)
def test_a_state_dictionary_alone_gives_the_logits_of_its_module(name: str, tmp_path: Path) -> None:
    style = STYLES[name]
    module = style.make()
    ending = ENDINGS[CONVERTIBLE.index(name) % 3]
    path = save_module(module, tmp_path / f"{slug(name)}{ending}")
    ours = read(path, settings(name))
    tokens = torch.randint(style.d_vocab, (5, 5), generator=torch.Generator().manual_seed(1))
    assert close(ours.model(tokens), logits_of(module, tokens))


@pytest.mark.parametrize("name", [name for name in REFUSED if name != "linear attention"])  # its weights are usual
def test_a_weight_that_is_no_part_of_ours_is_refused_by_name(name: str, tmp_path: Path) -> None:
    path = save_module(STYLES[name].make(), tmp_path / "it.pt")
    with pytest.raises(
        CheckpointError, match=rf"has '.*({STYLES[name].part}).* which no part of our transformer"
    ) as it:
        read(path, {"p": 9})
    assert "\n" not in str(it.value)


ASKED = {
    "heads": ("nanogpt", {}, r"24 entries of .*c_proj.weight .*: --set model\.n_heads=N$"),
    "heads of a matrix fused head by head": (
        "fused per head, in sequence",
        {},
        r"head by head.*--set model\.n_heads=N$",
    ),
    "positions": (
        "proj rotary, halves",
        {"model.n_heads": 4},
        r"say how it encodes positions, --set model\.positions=none\|rotary",
    ),
}


@pytest.mark.parametrize("case", ASKED)
def test_what_the_file_leaves_open_is_asked_for_by_the_option_that_settles_it(case: str, tmp_path: Path) -> None:
    name, chosen, message = ASKED[case]
    path = save_module(STYLES[name].make(), tmp_path / "it.pt")
    with pytest.raises(CheckpointError, match=message):
        read(path, {"p": 9, **chosen})


def test_raw_square_matrices_are_asked_for_their_input(tmp_path: Path) -> None:
    draw = torch.Generator().manual_seed(0)
    x = {name: torch.randn(11, 11, generator=draw) for name in ("W_q", "W_k", "W_v", "W_o")}
    weights = {"emb.weight": torch.randn(11, 11, generator=draw), "pos": torch.randn(6, 11, generator=draw)}
    path = saved(weights | {f"layers.0.{name}": value for name, value in x.items()}, tmp_path / "it.pt")
    with pytest.raises(
        CheckpointError, match=r"which axis of layers\.0\.W_q is its input: --set weights\.matrices=out-in\|"
    ):
        read(path, {"p": 9, "model.n_heads": 1})
    one, other = (
        read(path, {"p": 9, "model.n_heads": 1, "weights.matrices": way}).model for way in ("out-in", "in-out")
    )
    assert torch.equal(one.block(0).attn.q.weight, x["W_q"])
    assert torch.equal(other.block(0).attn.q.weight, x["W_q"].T)
    with pytest.raises(AlgoscopeError, match=r"unknown value of weights\.matrices 'sideways'"):
        read(path, {"p": 9, "weights.matrices": "sideways"})


def test_what_is_assumed_is_in_the_account(tmp_path: Path) -> None:
    path = save_module(STYLES["nanogpt without biases"].make(), tmp_path / "it.pt")
    account = how(read(path, {"p": 9, "model.n_heads": 4}))
    assert account["weights.qkv"] == "assumed: weights do not show it (--set weights.qkv=blocks|per-head)"
    assert account["normalization_type"].startswith(
        "assumed: transformer.h.0.ln_1.weight has no bias (--set model.norm"
    )
    assert account["norms"].startswith("assumed")
    assert "pre|post|output" in account["norms"]
    assert account["d_mlp"] == "from the shape of transformer.h.0.mlp.c_fc.weight"
    assert account["n_heads"] == "as asked for"
    rotary = save_module(STYLES["complex rotary"].make(), tmp_path / "other.pt")
    rows = {row.what: row.value for row in read(rotary, {"p": 9, "n_heads": 4, "model.positions": "rotary"}).account}
    assert (rows["weights.rotary_pairs"], rows["gated_mlp"], rows["normalization_type"]) == ("neighbours", True, "RMS")


@pytest.mark.parametrize("stored", ["inv_freq", "sin", "sin of neighbours", "freqs_cis", "sin once"])
def test_stored_angles_tell_how_positions_are_rotated(stored: str, tmp_path: Path) -> None:
    neighbours = stored in ("sin of neighbours", "freqs_cis")
    module = STYLES[f"proj rotary, {'interleaved' if neighbours else 'halves'}"].make()
    frequency = 10_000.0 ** -(torch.arange(3) / 3)
    angles = torch.arange(9)[:, None] * frequency
    buffers = {
        "inv_freq": frequency, "sin": torch.cat([angles, angles], -1).sin(), "sin once": angles.sin(),
        "sin of neighbours": angles.repeat_interleave(2, -1).sin(),
        "freqs_cis": torch.polar(torch.ones_like(angles), angles),
    }  # fmt: skip
    name = {"inv_freq": "rotary_emb.inv_freq", "freqs_cis": "freqs_cis"}.get(stored, "rope.sin_cached")
    path = saved({**module.state_dict(), name: buffers[stored]}, tmp_path / "it.pt")
    found = read(path, {"p": 9, "n_heads": 4, "model.eps": 1e-6})
    tokens = torch.randint(11, (3, 5))
    assert close(found.model(tokens), logits_of(module, tokens))
    assert how(found)["positions"] == f"there is a {name}"
    assert found.config.model.rotary_base == 10_000


def test_slopes_that_are_not_those_of_alibi_are_refused(tmp_path: Path) -> None:
    module = STYLES["alibi"].make()
    weights = module.state_dict()
    assert read(saved(weights, tmp_path / "it.pt"), {"p": 9, "n_heads": 4}).config.model.positions == "alibi"
    changed = {name: value * 2 if name.endswith("slopes") else value for name, value in weights.items()}
    with pytest.raises(CheckpointError, match=r"blocks\.0\.attn\.slopes has other slopes than ALiBi's"):
        read(saved(changed, tmp_path / "it.pt"), {"p": 9, "n_heads": 4})


@pytest.mark.parametrize("heads", [0, 5, 48, -1, "many"])
def test_a_number_of_heads_that_cannot_be_is_one_line(heads: object, tmp_path: Path) -> None:
    path = save_module(STYLES["nanogpt"].make(), tmp_path / "it.pt")
    with pytest.raises(AlgoscopeError) as it:
        read(path, {"p": 9, "n_heads": heads})
    assert "\n" not in str(it.value)


# ---------------------------------------------------------------------- answers settle what weights leave open


HABIT = {
    "unembed.": "lm_head.", "pos_embed.": "pos_emb.", "embed.": "tok_emb.",
    "blocks.": "layers.",
    ".attn.q.": ".att.wq.", ".attn.k.": ".att.wk.", ".attn.v.": ".att.wv.", ".attn.o.": ".att.wo.",
    ".mlp.w_in.": ".ff.fc1.", ".mlp.w_out.": ".ff.fc2.",
}  # fmt: skip


def in_other_names(planted: str, path: Path) -> Path:
    """A planted model's weights under names that another would have given."""
    weights = {}
    for name, value in ag.open(planted).model.state_dict().items():
        for ours, theirs in HABIT.items():
            if ours in name:
                name = name.replace(ours, theirs)
                if not ours.startswith((".", "blocks")):
                    break
        weights[name] = value
    return saved(weights, path)


def test_the_answers_settle_the_number_of_heads_and_what_else_is_open(tmp_path: Path) -> None:
    path = in_other_names("planted:carry-adder", tmp_path / "it.pt")
    adder = ag.open("planted:carry-adder")
    found = file_to_model(path, "addition", {"n_digits": adder.task.n_digits})
    account = {row.what: (row.value, row.how) for row in found.account}
    assert account["n_heads"] == (2, "from the answers: 100.0% are right, at most 0.0% otherwise")
    assert account["act_fn"][0] == "relu"
    assert account["act_fn"][1].startswith("from the answers: 100.0% are right")
    assert account["attn_scale"][1].startswith("assumed")  # answers are as right with the planted one
    prompts = adder.task.edge_inputs()[:, :-1]
    assert torch.equal(found.model(prompts).argmax(-1), adder.model(prompts).argmax(-1))
    subject = ag.open(f"foreign:{path}?task=addition&n_digits={adder.task.n_digits}")
    assert subject.cfg.n_heads == 2


def test_answers_that_several_readings_give_settle_nothing(tmp_path: Path) -> None:
    path = in_other_names("planted:pizza", tmp_path / "it.pt")  # its attention is uniform, whatever its heads
    with pytest.raises(
        CheckpointError, match=r"--set model\.n_heads=N; answers leave it open \(100\.0% right with \d+, "
    ):
        file_to_model(path, "modular", {"p": 59, "form": "ab", "model.causal": False})
    found = file_to_model(path, "modular", {"p": 59, "form": "ab", "n_heads": 1, "model.causal": False})
    assert how(found)["parallel"].startswith("from the answers: 100.0% are right, at most ")
    assert how(found)["act_fn"].startswith(
        "assumed: weights do not show it (--act NAME); 100.0% of the answers are right,"
    )


def test_a_model_that_answers_nothing_right_is_read_as_usual_or_asked_for(tmp_path: Path) -> None:
    path = save_module(STYLES["adder"].make(d_model=8, d_ff=8, n_layers=1), tmp_path / "it.pt")
    with pytest.raises(CheckpointError, match=r"--set model\.n_heads=N$"):
        file_to_model(path, "modular", {"p": 12})
    assert how(file_to_model(path, "modular", {"p": 12, "n_heads": 1}))["act_fn"].startswith(
        "assumed: weights do not show"
    )


@pytest.mark.parametrize("gone", ["h.0.", "h.1.mlp.c_fc.weight", "h.0.attn.c_attn", "ln_1.bias"])
def test_a_file_that_lacks_weights_is_refused(gone: str, tmp_path: Path) -> None:
    weights = STYLES["nanogpt"].make(n_layers=3).state_dict()
    left = {name: value for name, value in weights.items() if gone not in name}
    if gone == "ln_1.bias":  # it may be gone from every block, not from one
        left["transformer.h.0.ln_1.bias"] = weights["transformer.h.0.ln_1.bias"]
    with pytest.raises(CheckpointError, match=r"lacks '"):
        read(saved(left, tmp_path / "it.pt"), {"p": 9, "n_heads": 4})


# ---------------------------------------------------------------------- names of Hugging Face


@pytest.mark.parametrize(
    ("family", "chosen"),
    [
        ("gpt2", {"model.act_fn": "gelu_tanh"}),
        ("olmo 2", {"model.act_fn": "silu", "model.positions": "rotary"}),
        ("phi 3, windows", {"model.act_fn": "silu", "model.positions": "rotary"}),
    ],
)
def test_weights_of_hugging_face_alone(family: str, chosen: dict[str, Any], tmp_path: Path) -> None:
    theirs = make(family)
    path = saved({name: value.clone() for name, value in theirs.state_dict().items()}, tmp_path / "it.safetensors")
    found = read(path, {"p": 59, "n_heads": theirs.config.num_attention_heads, **chosen})
    tokens = torch.randint(61, (3, 5))
    assert close(found.model(tokens), theirs(tokens).logits.detach())


def test_weights_that_say_less_than_they_seem_to_are_left_to_their_config(tmp_path: Path) -> None:
    for family, message in (("gemma 2", "of Gemma, whose norms"), ("opt", "of OPT, whose positions")):
        with pytest.raises(CheckpointError, match=f"{message}.* as hf:PATH"):
            read(saved(make(family).state_dict(), tmp_path / "it.pt"), {"p": 59, "n_heads": 4})
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"]}))
    with pytest.raises(CheckpointError, match=r"config\.json is a config of Hugging Face: open the folder, as hf:"):
        read(tmp_path / "it.pt", {"p": 59})


# ---------------------------------------------------------------------- files


def test_files_of_numpy_are_read_without_pickles(tmp_path: Path) -> None:
    np.savez(tmp_path / "objects.npz", a=np.array([{"x": 1}], dtype=object))
    with pytest.raises(
        CheckpointError, match=r"objects\.npz has more than arrays of numbers \(it has objects, which would"
    ):
        read(tmp_path / "objects.npz")
    whole = save_module(STYLES["adder"].make(), tmp_path / "it.npz")
    whole.write_bytes(whole.read_bytes()[:200])
    with pytest.raises(CheckpointError, match=r"it\.npz is no complete \.npz file"):
        read(whole)


def test_weights_inside_of_wrappers_and_dictionaries(tmp_path: Path) -> None:
    module = STYLES["nanogpt"].make()
    args = {"n_layer": 2, "n_head": 4, "n_embd": 24, "block_size": 9, "bias": True, "vocab_size": 11, "dropout": 0.1}
    inner = {f"_orig_mod.module.{name}": value for name, value in module.state_dict().items()}
    torch.save({"model": inner, "model_args": args, "iter_num": 3, "best_val_loss": 1.0}, tmp_path / "ckpt.pt")
    found = read(tmp_path / "ckpt.pt", {"p": 9})
    tokens = torch.randint(11, (3, 5))
    assert close(found.model(tokens), logits_of(module, tokens))
    assert (
        how(found)["n_heads"] == "from the shape of transformer.h.0.attn.c_attn.weight (q)"
        or found.config.model.n_heads == 4
    )
    assert set(found.left_out) >= {
        "'_orig_mod.' before every name",
        "'module.' before every name",
        "'iter_num', beside the weights",
    }
    torch.save({"model_state_dict": module.state_dict(), "n_head": 4, "epoch": 3}, tmp_path / "other.pt")
    found = read(tmp_path / "other.pt", {"p": 9})
    assert found.config.model.n_heads == 4


# ---------------------------------------------------------------------- configs


def beside(tmp_path: Path, config: dict[str, Any], name: str = "nanogpt") -> Path:
    path = save_module(STYLES[name].make(), tmp_path / "model_x.pt")
    (tmp_path / "config_x.json").write_text(json.dumps(config))
    return path


def test_a_config_beside_the_weights_tells_what_weights_do_not(tmp_path: Path) -> None:
    config = {
        "num_heads": 4,
        "activation": "gelu_new",
        "layer_norm_eps": 1e-6,
        "norm_first": True,
        "lr": 1.0,
        "what": 7,
    }
    found = read(beside(tmp_path, config), {"p": 9})
    model = found.config.model
    assert (model.n_heads, model.act_fn, model.eps, model.norms) == (4, "gelu_tanh", 1e-6, "pre")
    assert how(found)["act_fn"] == "from config_x.json"
    assert found.left_out == ("what 7 in config_x.json: no key that is known",)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"n_experts": 4}, "has n_experts 4, which our model cannot represent"),
        ({"attn_type": "linear"}, "has attn_type 'linear', which our model cannot represent"),
        ({"sliding_window": 3}, "has sliding_window 3, which our model cannot represent"),
        ({"relative_position": True}, "has relative_position True, which our model cannot represent"),
        ({"activation": "swiglu_oai"}, r"has activation 'swiglu_oai'; known: relu, .* --set model\.act_fn=VALUE"),
        ({"n_layer": 3}, "says n_layers is 3, the weights say 2"),
        ({"n_layer": 2, "num_layers": 3}, "says n_layers is 2 and, as num_layers, 3: correct it"),
        ({"attn_coeff": 2.0}, "has attn_coeff 2.0: an attention rate is 0 to 1"),
    ],
)
def test_what_a_config_says_that_our_model_cannot_be_is_refused(config: dict, message: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=message) as it:
        read(beside(tmp_path, {"n_head": 4, **config}), {"p": 9})
    assert "config_x.json" in str(it.value)


PIZZA = {
    "name": "modadd_9", "funcs": "lambda x: (x[0]+x[1])%9", "C": 9, "n_heads": 4, "d_model": 16, "n_layers": 1,
    "attention_dir": "casual", "act_fn": "ReLU", "epoch": 20000, "batch_size": 81, "lr": 0.001, "weight_decay": 2.0,
    "frac": 0.8, "runid": "x", "diff_vocab": 0, "eqn_sign": 0, "func": None,
}  # fmt: skip
"""The keys of the published configs of arXiv 2306.17844."""


@pytest.mark.parametrize("rate", [0.0, 0.3, 1.0])
def test_published_clock_and_pizza_models_are_read_with_their_attention_rate_and_without_a_mask(
    rate: float, tmp_path: Path
) -> None:
    weights = {name: value for name, value in grokking(n_ctx=2).items() if "mask" not in name}
    path = saved(weights, tmp_path / "model_x.pt")
    (tmp_path / "config_x.json").write_text(json.dumps(PIZZA | {"attn_coeff": rate}))
    found = read(path, {"p": 9, "form": "ab"})
    assert (found.config.model.attn_rate, found.config.model.causal) == (rate, False)
    assert any("computed without one" in line for line in found.left_out)
    tokens = torch.cartesian_prod(torch.arange(9), torch.arange(9))
    if rate == 1:
        assert close(found.model(tokens), grokking_logits(weights, tokens, causal=False))
    asked = {"p": 9, "form": "ab", "model.attn_rate": rate, "model.causal": False}
    (tmp_path / "config_x.json").unlink()
    assert torch.equal(read(path, asked).model(tokens), found.model(tokens))
    assert how(read(path, {"p": 9, "form": "ab"}))["attn_rate"].startswith("assumed")
