"""Every lens, and certify, on models in every float type: finite numbers, close to those of float32."""

import json
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch

import algoscope as ag
from algoscope.core.errors import DivergedError
from algoscope.subjects.huggingface import convert
from algoscope.subjects.subject import Subject
from algoscope.subjects.text import Numbers
from hf_models import D_VOCAB, make

TYPES = (torch.float16, torch.bfloat16, torch.float64)
pytestmark = pytest.mark.long  # the walks ask some of it each time
ADDER: dict[str, Callable[[Subject], ag.Finding]] = {
    "answers": lambda m: ag.lenses.answers(m, n_inputs=20),
    "logit": lambda m: ag.lenses.logit(m, "123+456"),
    "attention": lambda m: ag.lenses.attention(m, "123+456"),
    "attention_by_part": lambda m: ag.lenses.attention_by_part(m, n_inputs=50),
    "attribution": lambda m: ag.lenses.attribution(m, "123+456"),
    "patch": lambda m: ag.lenses.patch(m, "123+456", "123+457"),
    "path_patching": lambda m: ag.lenses.path_patching(m, "123+456", "123+457"),
    "attribution_patching": lambda m: ag.lenses.attribution_patching(m, "123+456", "123+457"),
    "roles": lambda m: ag.lenses.roles(m, n_inputs=16),
    "ablate": lambda m: ag.lenses.ablate(m, n_inputs=16),
    "embeddings": lambda m: ag.lenses.embeddings(m),
    "weights": lambda m: ag.lenses.weights(m),
    "certify": lambda m: ag.certify(m, sample=100),
}
OTHERS: dict[str, Callable[[Subject], ag.Finding]] = {
    "source_attention": lambda m: ag.lenses.source_attention(m, n_inputs=50),
    "fourier": lambda m: ag.lenses.fourier(m),
    "clock": lambda m: ag.lenses.clock(m, n_inputs=50),
    "induction": lambda m: ag.lenses.induction(m, n_inputs=8),
}
MODELS = {
    "source_attention": "planted:reversal",
    "fourier": "planted:clock",
    "clock": "planted:clock",
    "induction": "planted:induction",
}
FREE: dict[str, Callable[[Subject], ag.Finding]] = {
    "logit": lambda m: ag.lenses.logit(m, "3 1 4 1 5"),
    "attention": lambda m: ag.lenses.attention(m, "3 1 4 1 5"),
    "attribution": lambda m: ag.lenses.attribution(m, "3 1 4 1 5"),
    "patch": lambda m: ag.lenses.patch(m, "3 1 4 1 5", "3 1 9 1 5", target="2", rival="7"),
    "path_patching": lambda m: ag.lenses.path_patching(m, "3 1 4 1 5", "3 1 9 1 5", target="2", rival="7"),
    "attribution_patching": lambda m: ag.lenses.attribution_patching(
        m, "3 1 4 1 5", "3 1 9 1 5", target="2", rival="7"
    ),
    "roles": lambda m: ag.lenses.roles(m, n_inputs=8),
    "ablate": lambda m: ag.lenses.ablate(m, n_inputs=8),
    "embeddings": lambda m: ag.lenses.embeddings(m),
    "weights": lambda m: ag.lenses.weights(m),
    "induction": lambda m: ag.lenses.induction(m, n_inputs=8),
}


def panels(finding: ag.Finding) -> Iterator[tuple[str, np.ndarray]]:
    plain = json.loads(finding.to_json())
    assert plain["provenance"]["weights_sha256"]
    for panel in finding.panels:
        yield panel.name, np.asarray(panel.values, dtype=float)


def close(half: ag.Finding, exact: ag.Finding, dtype: torch.dtype) -> None:
    """Most cells of every panel are those of float32 to the precision of the type: a rank may jump."""
    reference = dict(panels(exact))
    for name, values in panels(half):
        if name in reference and values.shape == reference[name].shape:
            assert np.isfinite(values[np.isfinite(reference[name])]).mean() > 0.98, name
            scale = max(1.0, float(np.nanmax(np.abs(reference[name]), initial=0)))
            assert (
                np.nanmedian(np.abs(values - reference[name])) <= (0.25 if dtype == torch.bfloat16 else 0.05) * scale
            ), name


def hf(family: str) -> Subject:
    return Subject(family, convert(make(family)), text=Numbers(D_VOCAB))


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("lens", ADDER)
def test_a_lens_on_a_model_with_a_task_in_every_float_type(lens: str, dtype: torch.dtype) -> None:
    model = ag.open("planted:carry-adder")
    close(ADDER[lens](model.to_dtype(dtype)), ADDER[lens](model), dtype)


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("lens", OTHERS)
def test_a_lens_for_one_mechanism_in_every_float_type(lens: str, dtype: torch.dtype) -> None:
    model = ag.open(MODELS[lens])
    close(OTHERS[lens](model.to_dtype(dtype)), OTHERS[lens](model), dtype)


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize("lens", FREE)
def test_a_lens_on_free_text_in_every_float_type(lens: str, family: str, dtype: torch.dtype) -> None:
    model = hf(family)
    close(FREE[lens](model.to_dtype(dtype)), FREE[lens](model), dtype)


@pytest.mark.parametrize("lens", ["logit", "attribution", "attention", "roles", "ablate", "induction"])
def test_a_lens_on_a_model_that_overflows_names_the_block(lens: str) -> None:
    model = hf("gpt2").to_dtype(torch.float16)
    model.model.block(1).mlp.w_in.weight.fill_(3e3)
    model.model.block(1).mlp.w_out.weight.fill_(6e4)
    with pytest.raises(
        DivergedError, match=r"activations of block 1 are not finite in float16: use to_dtype"
    ) as raised:
        FREE[lens](model)
    assert "\n" not in str(raised.value)


def test_a_lens_does_not_change_the_model() -> None:
    model = hf("gpt2").to_dtype(torch.float16)
    before = model.weights_sha256
    for lens in FREE.values():
        lens(model)
    assert model.weights_sha256 == before
    assert model.dtype == torch.float16
    assert not model.measured
    assert all(weight.dtype == torch.float16 for weight in model.model.parameters())


@pytest.mark.parametrize("lens", [*ADDER, *OTHERS])
def test_surroundings_change_no_finding(lens: str) -> None:
    ask, model = (ADDER | OTHERS)[lens], MODELS.get(lens, "planted:carry-adder")
    expected = ask(model)
    with (
        torch.inference_mode(),
        torch.autocast("cpu", dtype=torch.bfloat16),
        torch.device("meta"),
        np.errstate(all="raise"),
    ):
        found = ask(model)
    plain, usual = (json.loads(finding.to_json()) for finding in (found, expected))
    for one in (plain, usual):
        one.pop("seconds", None)
        one["provenance"].pop("seconds", None)
    assert plain == usual
