"""Weights of other tools: understood, with an account of how, or refused in one line with the way out."""

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformer_lens.model_bridge import TransformerBridge

import algoscope as ag
from algoscope.config import ModelConfig
from algoscope.core.errors import CheckpointError, RunFolderError, SubjectError, TaskMismatchError
from algoscope.formats.layout_reading import tensors_to_layout
from algoscope.formats.layouts import UNGATED, weights_to_layout
from algoscope.networks.build import build
from algoscope.subjects.foreign import import_weights
from algoscope.subjects.subject import Subject
from algoscope.tasks.groups.modular import Modular
from foreign_models import (
    CLASSIC,
    D_VOCAB,
    FORM,
    SHOWN_BY_WEIGHTS,
    TASK,
    all_prompts,
    classic,
    close,
    grokking,
    grokking_logits,
    how,
    plain_config,
    read,
    save_classic,
    saved,
    tokens,
)
from hf_models import make
from hf_models import save as save_hf

# ---------------------------------------------------------------------- TransformerLens


@pytest.mark.parametrize("kind", CLASSIC)
def test_a_hooked_transformer_with_its_config_gives_its_logits(kind: str, tmp_path: Path) -> None:
    theirs = classic(kind)
    found = read(save_classic(theirs, tmp_path / "it.safetensors"))
    assert close(found.model(tokens()), theirs(tokens()))
    assert how(found)["causal"] == "from it.json"
    assert {row.value for row in found.account if row.what == "layout"} == {"transformerlens"}


@pytest.mark.parametrize("kind", SHOWN_BY_WEIGHTS)
def test_weights_alone_show_the_shape_and_what_they_do_not_show_is_said_to_be_assumed(
    kind: str, tmp_path: Path
) -> None:
    theirs = classic(kind)
    path = save_classic(theirs, tmp_path / "it.safetensors", with_config=False)
    act = CLASSIC[kind]["act_fn"]
    found = read(path, act=act if act == "gelu" else None)
    assert close(found.model(tokens()), theirs(tokens()))
    said = how(found)
    assert said["causal"].startswith("assumed")
    assert said["act_fn"] == "as asked for" if act == "gelu" else said["act_fn"].startswith("assumed")
    assert said["d_model"].startswith("from the shape of ")
    assert set(said) >= {"n_layers", "n_heads", "d_head", "d_mlp", "normalization_type", "positions", "attn_bias"}


@pytest.mark.parametrize("base", [10_000, 500, 123.456])
def test_stored_sines_tell_how_positions_turn(base: float, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patched:
        patched.setitem(CLASSIC, "turned", CLASSIC["RMS, gated, shared heads, rotary"] | {"rotary_base": base})
        theirs = classic("turned")
    found = read(save_classic(theirs, tmp_path / "it.safetensors", with_config=False))
    assert found.config.model.rotary_base == pytest.approx(base, rel=1e-5)
    assert close(found.model(tokens()), theirs(tokens()))
    assert how(found)["rotary_base"] == "from blocks.0.attn.rotary_sin"


def test_attention_only_with_alibi(tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patched:
        patched.setitem(CLASSIC, "far", CLASSIC["folded norm, attention only"] | {"positional_embedding_type": "alibi"})
        theirs = classic("far")
    weights = {name: value for name, value in theirs.state_dict().items() if name != "pos_embed.W_pos"}
    torch.save({"model": weights, "config": plain_config(theirs)}, tmp_path / "it.pt")
    assert close(read(tmp_path / "it.pt").model(tokens()), theirs(tokens()))


def test_norms_that_were_folded_are_noticed(tmp_path: Path) -> None:
    theirs = classic("layer norm, gelu")
    theirs.process_weights_()
    found = read(save_classic(theirs, tmp_path / "it.safetensors", with_config=False), act="gelu")
    assert close(found.model(tokens()), theirs(tokens()))
    assert "a LayerNorm was folded" in how(found)["normalization_type"]


def test_the_bias_that_a_gated_feed_forward_adds_late_goes_into_the_next(tmp_path: Path) -> None:
    theirs = classic("RMS, gated, shared heads, rotary")
    assert theirs.blocks[0].mlp.b_in.abs().max() > 0.1
    found = read(save_classic(theirs, tmp_path / "it.safetensors"))
    assert any("went through" in line for line in found.left_out)
    assert close(found.model(tokens()), theirs(tokens()))


NATIVE = {
    "layer norm": {"act_fn": "relu", "normalization_type": "LN", "d_mlp": 40},
    "square, gelu by tanh": {"act_fn": "gelu_new", "normalization_type": "LN", "d_mlp": 24, "d_vocab_out": 10},
    "attention only": {"act_fn": "relu", "normalization_type": None, "attn_only": True},
    "gated": {"act_fn": "silu", "normalization_type": "RMS", "d_mlp": 40, "gated_mlp": True, "n_key_value_heads": 2},
}


@pytest.mark.parametrize("kind", NATIVE)
def test_a_native_bridge_gives_its_logits(kind: str, tmp_path: Path) -> None:
    shape = {"n_layers": 2, "d_model": 24, "n_ctx": 6, "d_head": 6, "n_heads": 4, "d_vocab": D_VOCAB, "seed": 0}
    bridge = TransformerBridge.boot_native(shape | NATIVE[kind])
    torch.manual_seed(0)
    for weight in bridge.parameters():
        weight.data += 0.2 * torch.randn_like(weight)
    config = {**shape, **NATIVE[kind]}
    torch.save({"state_dict": dict(bridge.state_dict()), "cfg": config}, tmp_path / "it.pt")
    if kind == "square, gelu by tanh":  # [in out] or [out in]?
        with pytest.raises(CheckpointError, match=r"could be .* say --layout transformerlens-current\|"):
            read(tmp_path / "it.pt")
    layout = "transformerlens-current" if kind.startswith("square") else None
    found = read(tmp_path / "it.pt", layout=layout)
    assert close(found.model(tokens()), bridge(tokens()).detach())
    assert how(found)["n_heads"].startswith("from the shape of ")


def test_a_bridge_around_gpt2_whose_matrices_stand_the_other_way(tmp_path: Path) -> None:
    folder = save_hf(tmp_path / "gpt2", "gpt2", with_tokenizer=False)
    bridge = TransformerBridge.boot_transformers(str(folder), device="cpu")
    path = saved({name: value.contiguous() for name, value in bridge.state_dict().items()}, tmp_path / "it.pth")
    with pytest.raises(CheckpointError, match=r"into how many heads .* --set model\.n_heads=N"):
        read(path, {"p": "59"})
    found = read(path, {"p": "59", "n_heads": "4"})
    with torch.no_grad():
        assert close(found.model(tokens(d_vocab=61)), make("gpt2")(tokens(d_vocab=61)).logits)
    assert found.account[0].value == "transformerlens-gpt2"
    assert found.config.model.act_fn == "gelu_tanh"


# ---------------------------------------------------------------------- the published grokking models


@pytest.mark.parametrize("out", [9, 10], ids=["p columns", "p + 1 columns"])
@pytest.mark.parametrize("ending", [".pt", ".safetensors"])
def test_the_layout_of_the_grokking_release(out: int, ending: str, tmp_path: Path) -> None:
    weights = grokking(out=out)
    found = read(saved(weights, tmp_path / f"it{ending}"), FORM)
    prompts = all_prompts(found.config.task)
    assert close(found.model(prompts), grokking_logits(weights, prompts))
    assert found.config.model.n_logits == out
    assert found.account[0].value == "grokking"
    assert how(found)["causal"].startswith("blocks.0.attn.mask hides later positions")
    assert how(found)["act_fn"].startswith("assumed")


def test_a_mask_that_is_stored_and_not_used(tmp_path: Path) -> None:
    weights = grokking(n_ctx=2)
    path = saved(weights, tmp_path / "it.pt")
    task = {**TASK, "form": "ab"}
    prompts = all_prompts(Modular(p=9, form="ab"))
    reference = grokking_logits(weights, prompts, causal=False)
    assert close(read(path, task, causal=False).model(prompts), reference)
    assert not close(read(path, task).model(prompts), reference)
    weights["blocks.0.attn.mask"] = torch.ones(2, 2)
    assert close(read(saved(weights, path), task).model(prompts), reference)


def test_what_is_met_in_the_wild(tmp_path: Path) -> None:
    """A prefix, biases that stayed zero, an embedding saved twice, 16 bits, a dictionary in a dictionary."""
    weights = {name: value.half().float() for name, value in grokking().items()}
    weights["blocks.0.mlp.b_in"] = torch.zeros(20)
    weights["blocks.0.mlp.b_out"] = torch.zeros(16)
    prompts = all_prompts(Modular(p=9, form="ab="))
    reference = grokking_logits(weights, prompts)
    wild = weights | {"embed.W_E_again": weights["embed.W_E"].T}
    inner = {f"model.{name}": value.half() for name, value in wild.items()}
    found = read(saved({"model": inner, "config": {"lr": 0.001}, "epoch": 3}, tmp_path / "it.pth"), FORM)
    assert close(found.model(prompts), reference)
    assert found.left_out == (
        "'model.' before every name",
        "embed.W_E_again, which is embed.W_E again",
        "'config', beside the weights",
        "'epoch', beside the weights",
    )
    assert not found.config.model.mlp_bias
    assert "all zero, left out" in how(found)["mlp_bias"]
    assert how(found)["dtype"] == "as saved"
    assert found.account[1].value == "float32, exactly, from float16"


def test_what_is_not_used_of_a_config_is_said(tmp_path: Path) -> None:
    path = save_classic(classic("layer norm, gelu"), tmp_path / "it.safetensors")
    beside = path.with_suffix(".json")
    plain = json.loads(beside.read_text())
    assert read(path).left_out == ()
    beside.write_text(json.dumps(plain | {"lr": 0.001, "logit_multiplier": 2.0}))
    assert read(path).left_out == (
        "lr 0.001 in it.json: no field of TransformerLens",
        "logit_multiplier 2.0 in it.json: no field of TransformerLens",
    )
    assert "logit_multiplier 2.0" in ag.open(f"foreign:{path}?task=modular&p=9").note
    beside.write_text(json.dumps({"what": 24}))
    assert read(path, act="gelu").left_out == ("it.json: no config, which has sizes such as n_layers and d_model",)


def test_stored_frequencies_count_where_they_are_not_the_usual_ones(tmp_path: Path) -> None:
    model = build(ModelConfig(d_vocab=11, n_ctx=5, d_model=16, n_heads=2, positions="rotary"), seed=0)
    usual = 10_000.0 ** -(torch.arange(4) / 4)
    for frequencies in (usual, torch.tensor([1.0, 0.3, 0.2, 0.1])):
        path = saved(model.state_dict() | {"rotary.inv_freq": frequencies}, tmp_path / "it.pt")
        cfg = read(path, TASK | {"model.n_heads": 2}).config.model
        assert (cfg.positions, cfg.rotary_dim, cfg.rotary_base) == ("rotary", 8, 10_000.0)
        assert cfg.rotary_frequencies == (None if frequencies is usual else tuple(frequencies.tolist()))


def test_a_file_without_mlp_and_with_a_tied_head(tmp_path: Path) -> None:
    weights = {name: value for name, value in grokking(out=10).items() if "mlp" not in name}
    weights["unembed.W_U"] = weights["embed.W_E"]
    found = read(saved(weights, tmp_path / "it.pt"), FORM)
    assert found.config.model.d_mlp is None
    assert found.config.model.tied_head
    zeros = {"blocks.0.mlp.W_in": torch.zeros(1, 16), "blocks.0.mlp.b_in": torch.zeros(1)}
    zeros |= {"blocks.0.mlp.W_out": torch.zeros(16, 1), "blocks.0.mlp.b_out": torch.zeros(16)}
    prompts = all_prompts(found.config.task)
    assert close(found.model(prompts), grokking_logits(weights | zeros, prompts))


# ---------------------------------------------------------------------- what shapes leave open


def square() -> dict[str, torch.Tensor]:
    return grokking(p=15, d_model=16, heads=1, d_head=16, d_mlp=16, out=15)


def test_what_the_shapes_leave_open_is_refused_with_the_option_that_settles_it(tmp_path: Path) -> None:
    weights, task = square(), {"p": "15", "form": "ab="}
    path = saved(weights, tmp_path / "it.pt")
    with pytest.raises(CheckpointError, match=r"\[16, 16\] could be \[.*\] or \[.*\].*: say --layout grokking$"):
        read(path, task)
    prompts = all_prompts(Modular(p=15, form="ab="))
    assert close(read(path, task, layout="grokking").model(prompts), grokking_logits(weights, prompts))


@given(
    layout=st.sampled_from(["transformerlens", "grokking"]),
    sizes=st.fixed_dictionaries(
        {axis: st.integers(1, 4) for axis in ("d_vocab", "d_model", "head", "d_head", "d_mlp", "d_vocab_out", "n_ctx")}
    ),
    with_positions=st.booleans(),
    turned=st.sets(st.sampled_from(["embed.W_E", "mlp.W_in", "mlp.W_out"])),
)
def test_a_layout_is_read_back_bit_for_bit_or_refused(
    layout: str, sizes: dict, with_positions: bool, turned: set[str]
) -> None:
    """However small and square the matrices, and some of them turned as in another layout: never another model."""
    sizes |= {"kv_head": sizes["head"]}
    draw = torch.Generator().manual_seed(0)
    parts = ["embed", "q", "k", "v", "o", "in", "out", "unembed"] + (["pos"] if with_positions else [])
    ours = {}
    for part in parts:
        name, axes = UNGATED[part]
        words = axes.replace("(head d_head)", "joined").replace("(kv_head d_head)", "joined").split()
        shape = [sizes["head"] * sizes["d_head"] if word == "joined" else sizes[word] for word in words]
        ours[name.replace("*", "0")] = torch.randn(shape, generator=draw)
    there = {
        name: value.T if name.removeprefix("blocks.0.") in turned else value
        for name, value in weights_to_layout(ours, layout, sizes).items()
    }
    try:
        back = tensors_to_layout(there, None, {}, "it")
    except CheckpointError:
        if turned:
            return
        back = tensors_to_layout(there, layout, {}, "it")
    assert set(back.weights) == set(ours)
    assert all(torch.equal(back.weights[name], ours[name]) for name in ours)


def test_layouts_of_distinct_sizes_need_no_option() -> None:
    sizes = {"head": 2, "kv_head": 2, "d_head": 3}
    ours = {}
    shapes = {"d_vocab": 11, "d_model": 7, "d_mlp": 13, "d_vocab_out": 5, "n_ctx": 4}
    for part in ("embed", "pos", "q", "k", "v", "o", "in", "out", "unembed"):
        name, axes = UNGATED[part]
        words = axes.replace("(head d_head)", "6").replace("(kv_head d_head)", "6").split()
        ours[name.replace("*", "0")] = torch.randn([shapes.get(word) or int(word) for word in words])
    for layout in ("transformerlens", "grokking"):
        assert tensors_to_layout(weights_to_layout(ours, layout, sizes), None, {}, "it").layout == layout
    mixed = weights_to_layout(ours, "transformerlens", sizes)
    mixed["blocks.0.mlp.W_in"] = mixed["blocks.0.mlp.W_in"].T
    back = tensors_to_layout(mixed, None, {}, "it")
    assert back.layout == "mixed"
    assert all(torch.equal(back.weights[name], ours[name]) for name in ours)


# ---------------------------------------------------------------------- as a run, as a subject


@pytest.fixture
def clock(tmp_path: Path) -> Path:
    """The planted clock as TransformerLens would have saved it."""
    ag.export("planted:clock", "transformerlens", tmp_path / "clock.safetensors")
    return tmp_path / "clock.safetensors"


def test_an_imported_model_is_a_run_like_any_other(clock: Path, runs_dir: Path, run) -> None:
    code, out, _ = run("import", clock, "--task", "modular", "--set", "p=113", "--name", "mine")
    assert code == 0
    assert "from the shape of unembed.W_U" in out
    assert "right on 100.00% of the inputs" in out
    code, out, _ = run("certify", "run:mine", "--json", "--quiet")
    assert code == 0
    assert json.loads(out)["wrong"] == 0
    assert json.loads(out)["domain"]["checked"] == 113**2
    opened = ag.open("run:mine")
    assert opened.weights_sha256 == ag.open("planted:clock").weights_sha256
    assert opened.before_training() is None
    assert [finding.kind for finding in opened.origin.findings()] == ["certify"]
    code, out, _ = run("runs", "--json")
    assert json.loads(out)[0] | {"wrong": 0} == json.loads(out)[0]
    code, out, _ = run("lens", "embeddings", "run:mine")
    assert code == 0
    code, out, err = run("import", clock, "--task", "modular", "--name", "mine")
    assert code == 2
    assert "exists and is finished" in err


def test_the_account_is_kept(clock: Path, runs_dir: Path, run) -> None:
    code, out, err = run("import", clock, "--task", "modular", "--set", "p=113", "--json", "--quiet")
    assert (code, err) == (0, "")
    said = json.loads(out)
    assert said["run"] == "clock"
    summary = ag.Run.find("clock", runs_dir).summary
    assert summary.model_dump(mode="json") == {key: value for key, value in said.items() if key not in ("run", "path")}
    assert summary.imported.file == "clock.safetensors"
    assert len(summary.imported.sha256) == 64
    assert [row.value for row in summary.imported.account if row.what == "d_model"] == [45]
    assert (summary.steps, summary.test_accuracy) == (0, 1.0)


def test_the_report_of_an_imported_model(tmp_path: Path, runs_dir: Path) -> None:
    made = import_weights(saved(grokking(out=10), tmp_path / "it.pt"), "modular", settings=FORM)
    assert made.name == "it"
    page = ag.report(made)
    assert page == made.path / "report.html"
    assert made.summary.weights_sha256 in page.read_text()


def test_a_name_that_cannot_be_one_is_refused(clock: Path, runs_dir: Path) -> None:
    with pytest.raises(RunFolderError, match="cannot name a run"):
        import_weights(clock, "modular", name="a name")


def test_a_foreign_subject_needs_no_folder(tmp_path: Path) -> None:
    weights = square()
    path = saved(weights, tmp_path / "it.pt")
    subject = ag.open(f"foreign:{path}?task=modular&p=15&form=ab%3D&layout=grokking&causal=false&act=relu")
    assert isinstance(subject, Subject)
    prompts = all_prompts(subject.task)
    assert close(subject.run(prompts)[0], grokking_logits(weights, prompts, causal=False))
    assert ag.certify(subject).facts["domain"]["size"] == 225
    with pytest.raises(SubjectError, match=r"does not name the task .* write foreign:\S+\?task=modular .*&p=113"):
        ag.open(f"foreign:{path}")
    with pytest.raises(SubjectError, match="causal must be true or false, not 'perhaps'"):
        ag.open(f"foreign:{path}?task=modular&causal=perhaps")
    with pytest.raises(TaskMismatchError):
        ag.open(f"foreign:{path}?task=modular&layout=grokking")
