"""Models of ours in other tools: the tool itself loads the file, and its logits are ours."""

import json
import re
import warnings
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from transformer_lens import HookedTransformer, HookedTransformerConfig
from transformer_lens.model_bridge import TransformerBridge
from transformers import AutoModelForCausalLM

import algoscope as ag
from algoscope.config import ModelConfig
from algoscope.core.errors import SubjectError
from algoscope.formats.model_building import file_to_model
from algoscope.formats.onnx import NAMED, model_to_graph
from algoscope.networks.build import build
from algoscope.subjects import exporting
from algoscope.subjects.exporting import export
from algoscope.subjects.subject import Subject
from algoscope.tasks.groups.modular import Modular
from foreign_models import D_VOCAB, TASK, P, close, tokens

SIZES = {"d_vocab": D_VOCAB, "n_ctx": 5, "d_model": 24, "n_heads": 4, "d_mlp": 40, "n_layers": 2}
MODELS: dict[str, ModelConfig] = {
    name: ModelConfig(**(SIZES | fields))
    for name, fields in {
        "the usual": {},
        "no norms, untied": {"normalization_type": None, "tied_head": False, "mlp_bias": False, "d_vocab_out": P},
        "attention only, every bias": {
            "d_mlp": None, "attn_bias": True, "tied_head": False, "head_bias": True, "act_fn": "relu",
        },
        "own heads, own scale": {"d_head": 5, "attn_scale": 0.3, "attn_bias": True, "attn_out_bias": False},
        "gpt2": {"act_fn": "gelu_tanh", "attn_bias": True},
        "no mask": {"causal": False, "act_fn": "gelu"},
        "sinusoids, parallel": {"positions": "sinusoidal", "parallel": True},
        "no positions": {"positions": None},
        "ALiBi": {"positions": "alibi"},
        "llama": {
            "normalization_type": "RMS", "positions": "rotary", "gated_mlp": True, "act_fn": "silu", "n_kv_heads": 2,
            "mlp_bias": False, "tied_head": False, "rotary_base": 500.0,
        },
        "normed queries, partial rotary": {
            "normalization_type": "RMS", "positions": "rotary", "qk_norm": True, "rotary_dim": 4, "mlp_bias": False,
        },
        "softmax plus one": {"softmax_plus_one": True, "positions": "rotary", "rotary_frequencies": (1.0, 0.3, 0.1)},
        "uniform attention": {"attn_scale": 0.0},
    }.items()
}  # fmt: skip
NOT_IN_TRANSFORMERLENS = {"softmax plus one": "adds one to the softmax", "uniform attention": "multiplies scores by 0"}

WRITTEN_OTHERWISE = {  # what TransformerLens is another way: factors in the weights, biases of zero
    "capped": {"attn_scores_soft_cap": 1.5, "output_logits_soft_cap": 4.0, "act_fn": "relu_squared"},
    "scaled embeddings, norms without biases": {"embed_scale": 2.0, "norm_bias": False},
    "a tied head with a bias": {"head_bias": True},
}
NOT_THERE = {
    **{f"(norms {norms})": {"norms": norms} for norms in ("post", "output", "both")},
    "(final_norm)": {"final_norm": False},
    "(qk_norm_over all)": {"qk_norm": True, "qk_norm_over": "all"},
    "(attn_rate 0.5)": {"attn_rate": 0.5},
    "the activation tanh": {"act_fn": "tanh"},
    "the activation quick_gelu": {"act_fn": "quick_gelu"},
}


def subject(kind: str | dict) -> Subject:
    """Every weight and bias random."""
    model = build(MODELS[kind] if isinstance(kind, str) else ModelConfig(**(SIZES | kind)), seed=0)
    draw = torch.Generator().manual_seed(0)
    for weight in model.parameters():
        weight.data += 0.3 * torch.randn(weight.shape, generator=draw)
    return Subject(str(kind), model, Modular(p=P))


# ---------------------------------------------------------------------- TransformerLens


@pytest.mark.parametrize("kind", [kind for kind in MODELS if kind not in NOT_IN_TRANSFORMERLENS])
def test_a_hooked_transformer_loads_it_and_it_comes_back_bit_for_bit(kind: str, tmp_path: Path) -> None:
    ours = subject(kind)
    weights, config = export(ours, "transformerlens", tmp_path / "it.safetensors")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it says of itself that it is deprecated
        theirs = HookedTransformer(HookedTransformerConfig(**json.loads(config.read_text())))
    missing, unexpected = theirs.load_state_dict(load_file(weights), strict=False)
    unused = {"pos_embed.W_pos"} if kind == "ALiBi" else set()
    assert {name for name in missing if not name.endswith(("mask", "IGNORE", "rotary_sin", "rotary_cos"))} == unused
    assert unexpected == []
    assert close(theirs(tokens()).detach(), ours.run(tokens())[0])
    back = file_to_model(weights, "modular", TASK, None, None, None)
    drawn = {name: value for name, value in MODELS[kind].model_dump().items() if not name.startswith("init_")}
    again = {name: value for name, value in back.config.model.model_dump().items() if name in drawn}
    if kind == "sinusoids, parallel":  # its table is learned now
        drawn["positions"] = "learned"
    else:
        assert Subject("it", back.model, ours.task).weights_sha256 == ours.weights_sha256
    irrelevant = {"act_fn": "relu", "mlp_bias": True} if again["d_mlp"] is None else {}
    if again["positions"] != "rotary":
        irrelevant |= {"rotary_dim": None}
    elif drawn["rotary_dim"] is None:
        drawn["rotary_dim"] = 6
    if again["normalization_type"] is None:
        irrelevant |= {"eps": 1e-5}
    assert again | irrelevant == drawn | irrelevant


@pytest.mark.parametrize("kind", ["the usual", "no norms, untied", "gpt2", "no mask", "no positions"])
def test_a_bridge_loads_the_current_naming(kind: str, tmp_path: Path) -> None:
    ours = subject(kind)
    weights, config = export(ours, "transformerlens", tmp_path / "it.safetensors", naming="current")
    bridge = TransformerBridge.boot_native(json.loads(config.read_text()))
    bridge.load_state_dict(load_file(weights))
    assert close(bridge(tokens()).detach(), ours.run(tokens())[0])
    back = file_to_model(weights, "modular", TASK, None, None, None)
    assert Subject("it", back.model, ours.task).weights_sha256 == ours.weights_sha256


@pytest.mark.parametrize("kind", WRITTEN_OTHERWISE)
def test_a_hooked_transformer_computes_the_same(kind: str, tmp_path: Path) -> None:
    ours = subject(WRITTEN_OTHERWISE[kind])
    weights, config = export(ours, "transformerlens", tmp_path / "it.safetensors")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it says of itself that it is deprecated
        theirs = HookedTransformer(HookedTransformerConfig(**json.loads(config.read_text())))
    assert theirs.load_state_dict(load_file(weights), strict=False).unexpected_keys == []
    assert close(theirs(tokens()).detach(), ours.run(tokens())[0])
    back = file_to_model(weights, "modular", TASK, None, None, None)
    assert close(Subject("it", back.model, ours.task).run(tokens())[0], ours.run(tokens())[0])


@pytest.mark.parametrize("named", NOT_THERE)
def test_an_option_that_others_do_not_have_is_refused_by_name(named: str, tmp_path: Path) -> None:
    ours = subject(NOT_THERE[named])
    for naming in ("legacy", "current"):
        with pytest.raises(SubjectError, match=re.escape(named)):
            export(ours, "transformerlens", tmp_path / "it.safetensors", naming=naming)
    if "activation" not in named:
        with pytest.raises(SubjectError, match="no class of Hugging Face is this model"):
            export(ours, "huggingface", tmp_path / "folder")


@pytest.mark.parametrize("kind", NOT_IN_TRANSFORMERLENS)
def test_what_transformerlens_cannot_be_is_refused(kind: str, tmp_path: Path) -> None:
    with pytest.raises(SubjectError, match=NOT_IN_TRANSFORMERLENS[kind]):
        export(subject(kind), "transformerlens", tmp_path / "it.safetensors")


@pytest.mark.parametrize("kind", ["llama", "ALiBi", "attention only, every bias", "sinusoids, parallel"])
def test_what_only_the_legacy_naming_can_say_is_refused_in_the_current_one(kind: str, tmp_path: Path) -> None:
    with pytest.raises(SubjectError, match="write --naming legacy"):
        export(subject(kind), "transformerlens", tmp_path / "it.safetensors", naming="current")


def test_files_say_where_they_come_from(tmp_path: Path) -> None:
    (weights, _) = export("planted:clock", "transformerlens", tmp_path / "it.safetensors")
    with safe_open(weights, "pt") as opened:
        facts = json.loads(opened.metadata()["algoscope"])
    assert facts["subject"] == "planted:clock"
    assert facts["weights_sha256"] == ag.open("planted:clock").weights_sha256
    assert json.loads(facts["task"])["p"] == 113
    assert json.loads(facts["vocabulary"])[-1] == "="


# ---------------------------------------------------------------------- Hugging Face


TOKENIZER = ("tokenizer.json", "tokenizer_config.json")


@pytest.mark.parametrize("kind", ["the usual", "gpt2", "llama", "no positions"])
def test_hugging_face_loads_it(kind: str, tmp_path: Path) -> None:
    ours = subject(kind)
    written = export(ours, "huggingface", tmp_path / "it")
    assert {path.name for path in written} == {"config.json", "model.safetensors", *TOKENIZER}
    theirs, report = AutoModelForCausalLM.from_pretrained(tmp_path / "it", output_loading_info=True)
    assert not any(report.values())
    with torch.no_grad():
        assert close(theirs(tokens()).logits, ours.run(tokens())[0])
    assert close(ag.open(f"hf:{tmp_path / 'it'}").run(tokens())[0], ours.run(tokens())[0])


REASONS = {
    "no norms, untied": "its blocks have no norms",
    "attention only, every bias": "it has no feed-forward",
    "own heads, own scale": "its heads do not divide d_model",
    "no mask": "it has no causal mask",
    "sinusoids, parallel": "its blocks are parallel",
    "ALiBi": "its positions are alibi",
    "normed queries, partial rotary": "its queries and keys are normed",
    "softmax plus one": "its softmax has one added",
    "uniform attention": r"its scores are multiplied by 0\.0",
}


@pytest.mark.parametrize("kind", REASONS)
def test_what_no_class_of_hugging_face_is_has_a_reason(kind: str, tmp_path: Path) -> None:
    with pytest.raises(SubjectError, match=f"no class of Hugging Face is this model: .*{REASONS[kind]}") as refused:
        export(subject(kind), "huggingface", tmp_path / "it")
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "it").exists()


def test_every_model_here_goes_to_hugging_face_or_has_a_reason() -> None:
    assert {*REASONS, "the usual", "gpt2", "llama", "no positions"} == set(MODELS)


# ---------------------------------------------------------------------- ONNX


def values_of(made: onnx.ModelProto, names: set[str], asked: torch.Tensor) -> dict[str, np.ndarray]:
    """What onnxruntime computes for values inside a graph."""
    made.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    session = onnxruntime.InferenceSession(made.SerializeToString())
    order = [out.name for out in session.get_outputs()]
    return dict(zip(order, session.run(None, {"tokens": asked.numpy()}), strict=True))


EXPORTED = ("gpt2", "llama", "softmax plus one")
EXPORTED_TOO = (  # with the others every operation; an export takes seconds
    "attention only, every bias", "no mask", "sinusoids, parallel", "ALiBi", "normed queries, partial rotary",
)  # fmt: skip


@pytest.mark.parametrize(
    "options",
    [
        pytest.param(
            {"norms": "post", "attn_rate": 0.4, "causal": False, "head_bias": True, "act_fn": "quick_gelu"},
            marks=pytest.mark.long,
        ),
        WRITTEN_OTHERWISE["capped"]
        | {"norms": "both", "windows": (2, None), "positions": "rotary", "embed_scale": 2.0},
    ],
)
def test_onnxruntime_computes_every_option(options: dict, tmp_path: Path) -> None:
    ours = subject(options)
    (path,) = export(ours, "onnx", tmp_path / "it.onnx")
    session = onnxruntime.InferenceSession(path)
    (theirs,) = session.run(["logits"], {"tokens": tokens().numpy()})
    assert close(torch.from_numpy(theirs), ours.run(tokens())[0])


@pytest.mark.parametrize("kind", [*EXPORTED, *(pytest.param(kind, marks=pytest.mark.long) for kind in EXPORTED_TOO)])
def test_onnxruntime_gives_its_logits_and_its_sites_for_any_batch_and_length(kind: str, tmp_path: Path) -> None:
    ours = subject(kind)
    (path,) = export(ours, "onnx", tmp_path / "it.onnx")
    session = onnxruntime.InferenceSession(path)
    for n, length in ((1, 1), (3, 4), (7, 5)):
        asked = tokens(n, length)
        (theirs,) = session.run(None, {"tokens": asked.numpy()})
        assert close(torch.from_numpy(theirs), ours.run(asked)[0])
    assert [axis.dim_param for axis in onnx.load(path).graph.input[0].type.tensor_type.shape.dim] == ["batch", "pos"]
    assert session.get_modelmeta().custom_metadata_map["weights_sha256"] == ours.weights_sha256
    assert str(Path(__file__).parent.parent).encode() not in path.read_bytes()
    made = onnx.load(path)
    inner = {node.output[0] for node in made.graph.node} & {site.name for site in ours.sites}
    assert inner == {site.name for site in ours.sites if site.kind in NAMED}
    values, (_, cache) = values_of(made, inner, tokens()), ours.run_with_cache(tokens())
    for name in inner:
        np.testing.assert_allclose(values[name], cache[name].numpy(), rtol=1e-4, atol=1e-5, err_msg=name)


def test_a_long_context_has_no_length_at_which_the_graph_changes() -> None:
    ours = ag.open("planted:previous-token")
    made, asked = model_to_graph(ours.model), torch.arange(2 * 64).view(2, 64) % 26
    for length in (2, 31, 32, 64):
        session = onnxruntime.InferenceSession(made.SerializeToString())
        (theirs,) = session.run(None, {"tokens": asked[:, :length].numpy()})
        assert close(torch.from_numpy(theirs), ours.run(asked[:, :length])[0])


def test_16_bits_become_float32() -> None:
    ours = subject("attention only, every bias").to_dtype(torch.bfloat16)
    (theirs,) = values_of(model_to_graph(ours.model), set(), tokens()).values()
    assert close(torch.from_numpy(theirs), ours.to_dtype(torch.float32).run(tokens())[0])


def test_what_does_not_fit_into_one_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("algoscope.formats.onnx.LARGEST", 10_000)
    with pytest.raises(SubjectError, match=r"bytes of weights do not fit into one ONNX file: export --to huggingface"):
        export(subject("the usual"), "onnx", tmp_path / "it.onnx")


# ---------------------------------------------------------------------- the command


def test_the_command_writes_and_says_what(run, tmp_path: Path) -> None:
    out = tmp_path / "new" / "it.safetensors"
    code, said, _ = run("export", "planted:clock", "--to", "transformerlens", "--out", out)
    assert (code, said) == (0, f"written: {out}, {out.with_suffix('.json')}\n")
    before = out.read_bytes()
    code, said, err = run("export", "planted:clock", "--to", "transformerlens", "--out", out, "--json", "--quiet")
    assert (code, json.loads(said), err) == (0, {"files": [str(out), str(out.with_suffix(".json"))]}, "")
    assert out.read_bytes() == before
    assert not list(out.parent.glob(".*"))


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--to", "tranformerlens", "--out", "it.safetensors"], r"unknown export format .* mean 'transformerlens'"),
        (["--to", "onnx", "--out", "it.pt"], r"--out it\.pt: onnx is written to a file that ends in \.onnx"),
        (["--to", "onnx", "--out", "it.onnx", "--naming", "legacy"], r"--naming is for --to transformerlens, not onnx"),
        (["--to", "transformerlens", "--out", "it.safetensors", "--naming", "old"], r"unknown naming 'old'.*current"),
        (["--to", "huggingface", "--out", "it"], r"its blocks have no norms: export --to onnx"),
    ],
)
def test_mistakes_are_one_line(args: list[str], message: str, run, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = run("export", "planted:clock", *args)
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert re.search(message, err)
    assert not list(tmp_path.iterdir())


def test_a_missing_package_is_named_with_the_way_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> None:
        raise ModuleNotFoundError(name="onnx")

    monkeypatch.setattr(exporting.FORMATS, "load", absent)
    with pytest.raises(SubjectError, match=r"--to onnx needs the package onnx: pip install 'algoscope\[onnx\]'"):
        export("planted:clock", "onnx", tmp_path / "it.onnx")
