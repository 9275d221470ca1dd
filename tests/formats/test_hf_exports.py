"""What a folder of Hugging Face cannot say is refused by name; what it says is what the model computes."""

from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from transformers import AutoModelForCausalLM

from algoscope.config import ModelConfig
from algoscope.core.errors import SubjectError
from algoscope.formats.huggingface import ACTIVATIONS, DESCRIBED
from algoscope.networks.build import build
from algoscope.subjects.exporting import export
from algoscope.subjects.subject import Subject
from algoscope.subjects.text import Numbers

SIZES: dict[str, Any] = {"d_vocab": 11, "n_ctx": 6, "d_model": 16, "n_heads": 2, "d_mlp": 20, "n_layers": 2}
LLAMA: dict[str, Any] = {
    "normalization_type": "RMS", "positions": "rotary", "gated_mlp": True, "act_fn": "silu", "mlp_bias": False,
}  # fmt: skip
UNSAID: dict[str, Any] = {
    "norms": "both", "final_norm": False, "embed_scale": 4.0, "attn_scores_soft_cap": 3.0,
    "output_logits_soft_cap": 3.0, "attn_rate": 0.5, "qk_norm_over": "all", "window_rotary_frequencies": (1.0,) * 4,
}  # fmt: skip
TOKENS = torch.randint(11, (3, 6), generator=torch.Generator().manual_seed(0))


def subject(**fields: Any) -> Subject:
    """Every weight and bias random."""
    model, draw = build(ModelConfig(**SIZES | fields), seed=0), torch.Generator().manual_seed(0)
    for weight in model.parameters():
        weight.data += 0.3 * torch.randn(weight.shape, generator=draw)
    return Subject("it", model, text=Numbers(11))


def test_every_field_is_written_or_refused() -> None:
    starts = {name for name in ModelConfig.model_fields if name.startswith("init_")}
    assert set(ModelConfig.model_fields) == DESCRIBED | set(UNSAID) | starts


@pytest.mark.parametrize("field", UNSAID)
@pytest.mark.parametrize("shape", [{}, LLAMA], ids=["gpt2", "llama"])
def test_a_field_that_no_class_has_is_refused_with_its_value(shape: dict, field: str, tmp_path: Path) -> None:
    with pytest.raises(SubjectError, match=f"no class of Hugging Face is this model: .*{field} is ") as refused:
        export(subject(**shape, **{field: UNSAID[field]}), "huggingface", tmp_path / "it")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("act_fn", get_args(ModelConfig.model_fields["act_fn"].annotation))
def test_activations_and_norms_without_a_bias_are_what_the_library_computes(act_fn: str, tmp_path: Path) -> None:
    assert act_fn in ACTIVATIONS
    ours = subject(act_fn=act_fn, norm_bias=False, attn_bias=True)
    export(ours, "huggingface", tmp_path / "it")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "it")
    with torch.no_grad():
        torch.testing.assert_close(ours.run(TOKENS)[0], theirs(TOKENS).logits, rtol=1e-5, atol=1e-5)
