"""Attribution patching: exact where the metric is linear in the activation, nearer to exact when integrated."""

import numpy as np
import pytest

import algoscope as ag
from algoscope.core.errors import ConfigError
from random_models import subject

CLEANS, CORRUPTS = ["12+34", "77+11"], ["12+35", "17+11"]


@pytest.mark.parametrize("direction", ["denoise", "noise"])
@pytest.mark.parametrize("n_steps", [1, 3])
def test_exact_where_the_metric_is_linear_in_the_activation(direction, n_steps: int) -> None:
    model = subject("bare", n_layers=1)  # without norms: behind attention, logits are sums
    sites = ["attn_out", "head", "head_position", "v", "resid_post"]
    patching = ag.lenses.attribution_patching(
        model, CLEANS, CORRUPTS, sites=sites, direction=direction, n_steps=n_steps
    )
    exact = ag.lenses.patch(model, CLEANS, CORRUPTS, sites=sites, direction=direction)
    for name in sites:
        np.testing.assert_allclose(patching[name].values, exact[name].values, atol=1e-6)
        np.testing.assert_allclose(patching[f"{name}, exact"].values, exact[name].values, atol=1e-12)
        assert patching["agreement"][name]["largest_error"] < 1e-6
    for _, approximate, measured in patching.tables[0].rows:
        assert abs(approximate - measured) < 1e-6


@pytest.mark.parametrize("family", ["reference", "grouped"])
def test_integrated_gradients_are_nearer_to_exact_patching_where_the_model_is_not_linear(family: str) -> None:
    once, integrated = (
        ag.lenses.attribution_patching(subject(family), CLEANS, CORRUPTS, n_steps=n)["agreement"] for n in (1, 5)
    )
    for name in once:
        assert integrated[name]["largest_error"] < once[name]["largest_error"]
        assert integrated[name]["correlation"] > once[name]["correlation"]


def test_integrated_over_all_positions_the_effects_of_a_layer_add_up_to_that_of_the_whole_stream() -> None:
    model = subject()
    patching = ag.lenses.attribution_patching(model, CLEANS, CORRUPTS, sites=["resid_pre"], n_steps=50)
    np.testing.assert_allclose(patching["resid_pre"].values.sum(axis=1), 1, atol=1e-2)


def test_every_sweep_and_metric_that_has_a_gradient() -> None:
    model = subject("grouped")
    every = ["resid_mid", "mlp", "q", "k", "v", "pattern", "neuron"]
    patching = ag.lenses.attribution_patching(model, CLEANS, CORRUPTS, sites=every, compare=False)
    assert [panel.name for panel in patching.panels] == every
    assert patching["agreement"] == {}
    assert patching.tables[0].columns == ("activation patched", "approximate")
    assert patching["k"].values.shape == (2, 2), "key-value heads"
    own = ag.lenses.attribution_patching(model, CLEANS, CORRUPTS, metric=lambda logits: logits[:, -1, 3].square())
    exact = ag.lenses.patch(model, CLEANS, CORRUPTS, metric=lambda logits: logits[:, -1, 3].square())
    np.testing.assert_allclose(own["mlp_out, exact"].values, exact["mlp_out"].values)


@pytest.mark.parametrize("metric", ["exact_match", lambda logits: logits[:, -1].argmax(-1)])
def test_a_metric_without_a_gradient_is_said_to_have_none(metric) -> None:
    with pytest.raises(ConfigError, match="has no gradient: take logit_diff"):
        ag.lenses.attribution_patching("planted:induction", "abcda", "cbada", metric=metric)


def test_on_the_command_line(run) -> None:
    options = ("--clean", "abcda", "--corrupt", "cbada", "--n-steps", "3", "--metric", "logit_diff")
    code, out, err = run("lens", "attribution_patching", "planted:induction", *options)
    assert (code, err) == (0, "")
    assert "gradients at 3 points" in out
