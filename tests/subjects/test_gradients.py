"""`run(..., grad=True)`: gradients at recorded activations are finite differences, and the model stays as it was."""

import pytest
import torch

from algoscope.subjects.edits import Add, Patch, Zero
from random_models import FAMILIES, TASK, subject

USUAL = ("reference", "grouped", "not causal")
SOME = [name if name in USUAL else pytest.param(name, marks=pytest.mark.long) for name in FAMILIES]


def tokens() -> torch.Tensor:
    return TASK.sample(2, torch.Generator().manual_seed(0))[:, :-1]


@pytest.mark.parametrize("family", SOME)
def test_the_gradient_at_every_site_is_the_finite_difference(family: str) -> None:
    model, draw = subject(family), torch.Generator().manual_seed(0)
    logits, cache = model.run(tokens(), record=[site.name for site in model.sites], grad=True)
    logits.square().sum().backward()
    for site in {site.kind: site for site in model.sites}.values():
        gradient = cache[site.name].grad
        assert gradient is not None, site
        step = torch.randn(gradient.shape, dtype=torch.float64, generator=draw) * 1e-6
        up, down = (
            model.run(tokens(), edits=[Add(site.name, value=step, scale=sign)])[0].square().sum() for sign in (1, -1)
        )
        torch.testing.assert_close((gradient.nan_to_num() * step).sum() * 2, up - down, rtol=1e-4, atol=1e-9)


def test_gradients_pass_through_edits_and_stop_where_a_patch_replaces() -> None:
    model = subject()
    replaced, after, before = ("resid_mid", 0), ("resid_post", 1), ("z", 0)
    value = torch.ones(16, dtype=torch.float64)
    edits = [Patch(replaced, value=value), Zero(("z", 1), head=0)]
    logits, cache = model.run(tokens(), record=[replaced, after, before], edits=edits, grad=True)
    assert torch.equal(logits, model.run(tokens(), edits=edits)[0])
    logits.sum().backward()
    assert cache[after].grad.abs().max() > 0
    assert cache[replaced].grad.abs().max() > 0
    assert cache[before].grad is None or cache[before].grad.abs().max() == 0


def test_the_model_and_the_mode_of_gradients_stay_as_they_were() -> None:
    model = subject()
    sha, mode = model.weights_sha256, torch.is_grad_enabled()
    for outside in (torch.no_grad(), torch.enable_grad()):
        with outside:
            logits, cache = model.run(tokens(), record=[("z", 0)], grad=True)
        logits.sum().backward()
        assert cache["z", 0].grad.abs().max() > 0
    plain, _ = model.run(tokens())
    assert not plain.requires_grad
    assert torch.equal(plain, logits)
    assert torch.is_grad_enabled() is mode
    assert (model.weights_sha256, model.model.training) == (sha, False)
    assert all(weight.grad is None and not weight.requires_grad for weight in model.model.parameters())


def test_half_precision_has_gradients_too() -> None:
    model = subject().to_dtype(torch.bfloat16)
    for measured in (model, model.for_measuring()):
        names = [site.name for site in measured.sites]
        logits, cache = measured.run(tokens(), record=names, grad=True)
        logits.sum().backward()
        assert all(cache[name].grad is not None for name in names)
