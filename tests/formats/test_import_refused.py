"""Files that are no model of ours, or not this task's: refused in one line that says what, which value, the way out."""

import json
import os
from pathlib import Path

import pytest
import torch

from algoscope.core.errors import AlgoscopeError, CheckpointError
from algoscope.formats.layout_reading import tensors_to_layout
from algoscope.formats.layouts import LAYOUTS
from algoscope.formats.model_building import file_to_model
from foreign_models import FORM, classic, grokking, read, save_classic, saved


class Planned:
    """A class of somebody else's."""


class Mischief:
    def __reduce__(self):
        return os.mkdir, ("it_ran",)


def changed(**changes: object) -> dict:
    weights = grokking() | {name.replace("__", "."): value for name, value in changes.items()}
    return {name: value for name, value in weights.items() if value is not None}


REFUSED = {
    "a missing file": (None, FORM, r"no file at "),
    "code": ({"model": grokking(), "config": Planned()}, FORM, r"needs code to be read \(the class \S*Planned\)"),
    "a pickle that acts": ({"model": Mischief()}, FORM, r"needs code to be read .* never run"),
    "a list": ([grokking(), grokking()], FORM, r"has a list of 2, not named tensors"),
    "numbers": ({"accuracy": [1.0, 2.0], "loss": 3}, FORM, r"a dictionary of 'accuracy', 'loss', not named tensors"),
    "an unknown weight": (
        changed(blocks__0__attn__sinks=torch.ones(4)), FORM, r"has 'blocks\.0\.attn\.sinks', which no part"
    ),
    "a missing weight": (changed(blocks__0__attn__W_K=None), FORM, r"lacks 'blocks\.0\.attn\.W_K'"),
    "no embedding": (changed(embed__W_E=None), FORM, r"lacks 'embed\.W_E'"),
    "half a feed-forward": (changed(blocks__0__mlp__W_out=None), FORM, r"lacks 'blocks\.0\.mlp\.W_out'"),
    "a block that is not there": (
        changed(blocks__2__attn__W_K=torch.ones(4, 4, 16)), FORM, r"lacks .*'blocks\.1\.attn\..*blocks \[0, 2\]"
    ),
    "shapes that disagree": (
        changed(blocks__0__mlp__W_in=torch.ones(20, 15)), FORM, r"fit no known layout: as .* is 1[56] in .*W_"
    ),
    "another rank": (changed(blocks__0__attn__W_Q=torch.ones(16)), FORM, r"W_Q \[16\] is not \["),
    "not a number": (changed(embed__W_E=torch.full((16, 10), torch.nan)), FORM, r"embed\.W_E has a value that is not"),
    "whole numbers": (changed(embed__W_E=torch.ones(16, 10).long()), FORM, r"embed\.W_E is of the type torch\.int64"),
    "no positions": (changed(pos_embed__W_pos=None), FORM, r"no pos_embed\.W_pos.*--set model\.positions=none\|rotary"),
    "one norm of three": (changed(blocks__0__ln1__w=torch.ones(16)), FORM, r"has blocks\.0\.ln1\.w but lacks .*ln2\.w"),
    "half of the normed queries": (
        changed(blocks__0__attn__q_norm__w=torch.ones(4)), FORM, r"has blocks\.0\.attn\.q_norm\.w but lacks .*k_norm\.w"
    ),
    "zeros of unknown name": (
        changed(blocks__0__mlp__b_in=torch.zeros(20), gates=torch.zeros(20)), FORM, r"has 'gates', which no part of"
    ),
    "a strange mask": (
        changed(blocks__0__attn__mask=torch.eye(3) + torch.ones(3, 3).triu(1)), FORM, r"neither causal nor open"
    ),
    "names of another library": (
        {"transformer.h.0.attn.c_attn.weight": torch.ones(3, 3)}, FORM, r"lacks a token embedding, such as 'embed"
    ),
    "no names at all": ({"a": torch.ones(3)}, FORM, r"no weight in it has a name of .*; it has 'a'; known layouts: "),
    "a task with more tokens": (changed(), {"p": "10", "form": "ab="}, r"10 tokens.*\(.*p=10.*needs 11: .*--set"),
    "a task with more positions": (changed(), {"p": "8"}, r"has 3 positions.* needs 4"),
    "a task with more answers": (changed(unembed__W_U=torch.ones(16, 5)), FORM, r"has 5 logits.* needs 9"),
    "a field that there is not": (changed(), {"q": "3"}, r"unknown field of the task modular 'q'.* p$"),
    "another section": (changed(), {"optim.lr": "3"}, r"unknown section .*'optim'"),
    "a value of another type": (changed(), {"p": "many"}, r"^task\.p: .* not 'many'$"),
    "a model's value of another type": (changed(), FORM | {"model.eps": "tiny"}, r"^model\.eps: .* not 'tiny'$"),
    "biases that are set away": (changed(), FORM | {"model.mlp_bias": "false"}, r"config does not have: .*w_in\.bias'"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_model_of_ours_is_refused_in_one_line(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    content, task, message = REFUSED[case]
    if content is not None:
        torch.save(content, tmp_path / "it.pt")
    with pytest.raises(AlgoscopeError, match=message) as refused:
        read(tmp_path / "it.pt", task)
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "it_ran").exists()


@pytest.mark.parametrize("ending", [".pt", ".safetensors"])
@pytest.mark.parametrize("kept", [0.0, 0.3, 0.9])
def test_truncated_files_are_refused(ending: str, kept: float, tmp_path: Path) -> None:
    path = saved(grokking(), tmp_path / f"it{ending}")
    path.write_bytes(path.read_bytes()[: int(kept * path.stat().st_size)])
    with pytest.raises(CheckpointError, match="no complete"):
        read(path, FORM)


def test_other_endings_and_names_are_refused(tmp_path: Path) -> None:
    (tmp_path / "it.h5").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"weights are read from \.safetensors, \.npz, \.pt"):
        read(tmp_path / "it.h5")
    with pytest.raises(AlgoscopeError, match=r"unknown layout 'groking': did you mean 'grokking'"):
        read(tmp_path / "it.h5", layout="groking")
    with pytest.raises(AlgoscopeError, match=r"unknown task 'modula': did you mean 'modular'"):
        file_to_model(tmp_path / "it.h5", "modula", {}, None, None, None)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"use_normalization_before_and_after": True}, r"it\.json has use_normalization_before_and_after True"),
        ({"act_fn": "solu_ln"}, r"it\.json has act_fn 'solu_ln'; known: relu, gelu"),
        ({"positional_embedding_type": "shortformer"}, r"positional_embedding_type 'shortformer'; known: standard"),
        (
            {"d_model": 32},
            r"it\.json says d_model is 32, the weights say 24 \(from the shape of .*--set model\.d_model",
        ),
        ({"normalization_type": None}, r"says normalization_type is None, the weights say LN"),
        ({"attn_only": True}, r"says d_mlp is None, the weights say 40"),
        ({"gated_mlp": True}, r"says gated_mlp is True, the weights say False"),
        ({"use_qk_norm": True}, r"says qk_norm is True, the weights say False"),
        ({"n_key_value_heads": 2}, r"kv_head is 4 in blocks\.0\.attn\.W_K .*, 2 by the config"),
        ({"d_head": 6}, r"d_head is 5 in blocks\.0\.attn\.W_Q|says d_head is None, the weights say 5"),
        ({"d_vocab": 12}, r"says d_vocab is 12, the weights say 11"),
        ({"d_vocab_out": 9}, r"says d_vocab_out is 9, the weights say None"),
        ({"final_rms": True}, r"has final_rms True, but normalization_type LN: norms are of one kind"),
        ({"clip_qkv": 8.0}, r"it\.json has clip_qkv 8\.0, which algoscope does not support"),
        ({"scale_embedding": True}, r"it\.json has scale_embedding True"),
        ({"rmsnorm_uses_offset": True}, r"it\.json has rmsnorm_uses_offset True"),
        ({"relative_attention_num_buckets": 8}, r"it\.json has relative_attention_num_buckets 8"),
        ({"use_local_attn": True, "window_size": 4, "attn_types": ["local", "local"]}, r"has use_local_attn True"),
        ({"attention_dir": "sideways"}, r"has attention_dir 'sideways'; known: causal, bidirectional"),
    ],
)
def test_a_config_that_contradicts_or_asks_for_another_kind_of_model(
    change: dict, message: str, tmp_path: Path
) -> None:
    path = save_classic(classic("layer norm, gelu"), tmp_path / "it.safetensors")
    beside = path.with_suffix(".json")
    beside.write_text(json.dumps(json.loads(beside.read_text()) | change))
    with pytest.raises(CheckpointError, match=message):
        read(path)


def test_every_layout_is_in_the_error_and_in_the_help(run) -> None:
    with pytest.raises(CheckpointError, match=", ".join(LAYOUTS)):
        tensors_to_layout({"a": torch.ones(1)}, None, {}, "it")
    _, out, _ = run("import", "--help")
    assert all(name in out.split() or f"{name}," in out or f"{name}." in out for name in LAYOUTS if "scope" not in name)
