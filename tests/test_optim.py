"""Optimisers, held to PyTorch's own."""

import pytest
import torch
from torch import nn

from algoscope.config import OptimConfig
from algoscope.networks.build import build
from algoscope.training.optim import Muon, Optimisers, Schedule, orthogonalise
from algoscope.training.recipes import add3


def test_muon_is_pytorchs_muon() -> None:
    torch.manual_seed(0)
    shapes = [(32, 32), (64, 32), (32, 64), (32, 32)]
    ours = [nn.Parameter(torch.randn(shape)) for shape in shapes]
    theirs = [nn.Parameter(p.detach().clone()) for p in ours]
    muon = Muon(ours, lr=0.02, momentum=0.95, newton_schulz_steps=5)
    reference = torch.optim.Muon(theirs, lr=0.02, momentum=0.95, ns_steps=5, weight_decay=0.0, eps=1e-7)
    for _ in range(5):
        for mine, other in zip(ours, theirs, strict=True):
            mine.grad = torch.randn(mine.shape)
            other.grad = mine.grad.clone()
        muon.step()
        reference.step()
    for mine, other in zip(ours, theirs, strict=True):  # PyTorch orthogonalises in bfloat16: 8 bits
        torch.testing.assert_close(mine, other, rtol=0, atol=0.02 * 5 * 0.05)


def test_orthogonalise_brings_singular_values_near_one() -> None:
    torch.manual_seed(0)
    for shape in ((3, 32, 32), (2, 64, 32), (2, 32, 64)):
        values = torch.linalg.svdvals(orthogonalise(torch.randn(shape), 5))
        assert values.max() < 1.3
        assert values.median() > 0.6


def test_muon_moves_matrices_of_blocks_and_adamw_the_rest() -> None:
    model = build(add3().model, 0)
    optimisers = Optimisers(model, add3().optim)
    n_muon = sum(p.numel() for group in optimisers.members["muon"].param_groups for p in group["params"])
    n_adamw = sum(p.numel() for group in optimisers.members["adamw"].param_groups for p in group["params"])
    assert n_muon == 2 * (4_096 + 4_096)
    assert n_muon + n_adamw == 17_760


def test_learning_rate_warms_up_holds_and_decays() -> None:
    cfg = OptimConfig(warmup_steps=10, hold=0.5, decay="linear", final_lr=0.1)
    share = [Schedule.planned(cfg, 110).share(step) for step in range(110)]
    assert share[:10] == pytest.approx([(i + 1) / 10 for i in range(10)])
    assert set(share[10:60]) == {1.0}
    assert share[60] == pytest.approx(1.0)
    assert share[85] == pytest.approx(0.55)
    assert share[109] == pytest.approx(0.1, abs=0.02)


def test_cosine_is_pytorchs_cosine() -> None:
    schedule = Schedule.planned(OptimConfig(decay="cosine"), 50)
    dummy = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs = torch.optim.lr_scheduler.CosineAnnealingLR(dummy, T_max=50)
    for step in range(50):
        assert schedule.share(step) == pytest.approx(theirs.get_last_lr()[0])
        dummy.step()
        theirs.step()


def test_a_model_that_has_got_it_decays_early_and_once() -> None:
    cfg = OptimConfig(hold=0.8, decay="linear", decay_at=0.9, decay_steps=50)
    planned = Schedule.planned(cfg, 1000)
    assert (planned.begin, planned.end) == (800, 1000)
    assert planned.noticed(100, 0.89) == planned
    early = planned.noticed(100, 0.9)
    assert (early.begin, early.end) == (100, 150)
    assert early.noticed(120, 1.0) == early
    assert planned.noticed(790, 1.0).end == 840
    assert planned.noticed(900, 1.0) == planned
    never = Schedule.planned(OptimConfig(hold=0.8), 1000)
    assert never.noticed(100, 1.0) == never


def test_gradients_are_clipped_to_the_norm() -> None:
    model = build(add3().model, 0)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimisers = Optimisers(model, OptimConfig(clip=1.0, lr=1e-9))
    before = model.embed.weight.detach().clone()
    optimisers.step(1.0)
    moment = optimisers.members["adamw"].state[model.embed.weight]["exp_avg"]
    assert moment.flatten()[0].item() == pytest.approx(0.1 / 17_760**0.5, rel=1e-3)
    assert not torch.equal(before, model.embed.weight)
