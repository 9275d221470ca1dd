"""Weights that are no numbers: one line that names the part, wherever a model comes from."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import algoscope as ag
from algoscope.config import ModelConfig
from algoscope.core.errors import AlgoscopeError, CheckpointError, DivergedError
from algoscope.networks.build import build
from algoscope.recipes.table import RECIPES
from algoscope.subjects.subject import Subject
from algoscope.subjects.text import Letters
from hf_models import save

BLOCK_1 = r"weights of block 1 are not finite"


def refused(ask: Callable[[], object], words: str = BLOCK_1, error: type[AlgoscopeError] = CheckpointError) -> None:
    with pytest.raises(error, match=words) as raised:
        ask()
    assert "\n" not in str(raised.value)


def spoil(path: Path, name: str, value: float = torch.nan) -> None:
    weights = load_file(path)
    weights[name].view(-1)[3] = value
    save_file(weights, path, metadata={"format": "pt"})


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_a_hugging_face_folder(value: float, tmp_path: Path) -> None:
    folder = save(tmp_path / "model")
    spoil(folder / "model.safetensors", "transformer.h.1.mlp.c_fc.weight", value)
    refused(lambda: ag.open(f"hf:{folder}"))


def test_a_run_and_a_file_of_ours(tmp_path: Path) -> None:
    short = {"n_digits": 1, "steps": 2, "batch": 8, "data.n_test": 10}
    run = ag.train("add3", settings=short, runs_dir=tmp_path, progress=False)
    checkpoint = run.path / "checkpoints" / f"step_{run.newest_step:08d}.safetensors"
    spoil(checkpoint, "blocks.1.attn.q.weight")
    for ask in (lambda: ag.open(f"run:{run.path}"), lambda: ag.open(run), lambda: ag.certify(run)):
        refused(ask)
    (tmp_path / "weights.json").write_text((run.path / "config.json").read_text())
    (tmp_path / "weights.safetensors").write_bytes(checkpoint.read_bytes())
    refused(lambda: ag.open(f"file:{tmp_path / 'weights.safetensors'}"))


def test_weights_of_other_tools(tmp_path: Path) -> None:
    path = tmp_path / "pizza.safetensors"
    ag.export("planted:pizza", "transformerlens", path)
    spoil(path, "blocks.0.mlp.W_in")
    fields = {"p": 59, "form": "ab"}
    for ask in (
        lambda: ag.import_weights(path, "modular", settings=fields, runs_dir=tmp_path),
        lambda: ag.open(f"foreign:{path}?task=modular&p=59&form=ab"),
    ):
        refused(ask, r"blocks\.0\.mlp\.W_in has a value that is not finite")


def in_code() -> Subject:
    cfg = ModelConfig(d_vocab=6, n_ctx=8, d_model=8, n_heads=2, n_layers=2)
    return Subject("mine", build(cfg, seed=0), text=Letters("abcdef"))


def test_a_model_that_is_changed_in_memory_is_refused_when_it_is_looked_at() -> None:
    model, tokens = in_code(), torch.tensor([[0, 1, 2]])
    model.model.block(1).attn.o.weight.data[0, 0] = torch.nan  # of which not even the version of the tensor tells
    for ask in (
        lambda: model(tokens),
        lambda: model.run_with_cache(tokens),
        lambda: model.generate("abc", 2),
        lambda: ag.lenses.weights(model),
        lambda: ag.lenses.logit(model, "abc"),
        lambda: ag.open(model),
        lambda: Subject("again", model.model, text=model.text),
    ):
        refused(ask)


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("embed.weight", "the token embedding"),
        ("pos_embed.weight", "the position embedding"),
        ("blocks.0.ln1.bias", "block 0"),
        ("ln_final.weight", "the final norm"),
    ],
)
def test_the_part_is_named(name: str, part: str) -> None:
    model = in_code().model
    model.get_parameter(name).data.view(-1)[0] = torch.inf
    refused(
        lambda: Subject("mine", model, text=Letters("abcdef")), rf"mine: weights of {part} are not finite \({name}\)"
    )


def test_weights_too_large_for_half_precision_are_refused_with_the_way_out() -> None:
    model = in_code()
    model.model.block(1).mlp.w_in.weight.data[0, 0] = 1e6
    refused(lambda: model.to_dtype(torch.float16), rf"{BLOCK_1} .*float16 ends at 65,504, so use bfloat16 or float32")
    assert model.to_dtype(torch.bfloat16).run(torch.tensor([[0, 1]]))[0].isfinite().all()


def test_logits_that_overflow_are_no_answer() -> None:
    model = in_code().to_dtype(torch.float16)
    model.model.ln_final.weight.data.fill_(6e4)
    model.model.embed.weight.data.fill_(6e4)
    model.model.embed.weight.data[:, 0] = -6e4
    for ask in (lambda: model(torch.tensor([[0, 1]])), lambda: model.generate("ab", 2)):
        refused(ask, "its logits are not finite in float16, although its weights are", DivergedError)


def test_large_weights_are_finite() -> None:
    model = in_code()
    model.model.embed.weight.data.fill_(3e38)  # their sum is not a float32
    model.require_finite()


@pytest.mark.parametrize(
    ("dtypes", "words"),
    [
        ([torch.float16], "of the type float16 and float32: write all as one of float32, float64, bfloat16, float16"),
        ([torch.int32], "of the type float32 and int32"),
        ([torch.complex64], "of the type complex64 and float32"),
        ([torch.float8_e4m3fn] * 99, "of the type float8_e4m3fn:"),
    ],
)
def test_weights_of_several_types_or_of_none_that_computes_are_refused(
    dtypes: list[torch.dtype], words: str, tmp_path: Path
) -> None:
    run = ag.Run.create(tmp_path / "mixed", RECIPES.load("add3")())
    weights = build(run.config.model, seed=0).state_dict()
    weights |= {name: value.to(dtype) for (name, value), dtype in zip(list(weights.items())[1:], dtypes, strict=False)}
    if len(dtypes) > 1:
        weights["embed.weight"] = weights["embed.weight"].to(dtypes[0])
    run.save_checkpoint(1, weights, {})
    refused(lambda: ag.open(f"run:{run.path}"), words)


def test_the_smallest_floats_of_other_tools_are_converted(tmp_path: Path) -> None:
    ag.export("planted:pizza", "transformerlens", tmp_path / "it.safetensors")
    weights = {name: value.to(torch.float8_e4m3fn) for name, value in load_file(tmp_path / "it.safetensors").items()}
    save_file(weights, tmp_path / "it.safetensors")
    model = ag.open(f"foreign:{tmp_path / 'it.safetensors'}?task=modular&p=59&form=ab")
    assert model.dtype == torch.float32
    assert torch.equal(model.token_embedding(), weights["embed.W_E"].float())
