"""Optimisers, held to PyTorch's own."""

import pytest
import torch
from torch import nn

from algoscope.config import OptimConfig
from algoscope.core.errors import CheckpointError
from algoscope.networks.build import build
from algoscope.recipes.addition import add3
from algoscope.training.optim import Optimisers, Schedule, orthogonalise


class Matrices(nn.Module):
    """Parameters of several shapes under the names that Muon and AdamW divide among them."""

    def __init__(self, shapes: list[tuple[int, ...]]) -> None:
        super().__init__()
        self.blocks = nn.ParameterList(nn.Parameter(torch.randn(shape, dtype=torch.float64)) for shape in shapes)


def moved(model: nn.Module, cfgs: list[OptimConfig], gradients: list[dict], shares: list[float]) -> Optimisers:
    """Optimisers whose members all began as the model and took steps with these gradients."""
    optimisers = Optimisers(model, cfgs)
    for member in range(len(cfgs)):
        optimisers.flat.fill(member, model.state_dict())
    optimisers.start()
    for gradient in gradients:
        for name, rows in optimisers.flat.tensors(optimisers.flat.grads).items():
            rows.copy_(gradient[name].expand_as(rows))
        optimisers.step(shares)
    return optimisers


def gradients_of(model: nn.Module, n: int) -> list[dict]:
    return [{name: torch.randn_like(p) for name, p in model.named_parameters()} for _ in range(n)]


def theirs_after(optimiser: torch.optim.Optimizer, model: nn.Module, gradients: list[dict]) -> dict:
    for gradient in gradients:
        for name, parameter in model.named_parameters():
            parameter.grad = gradient[name].clone()
        optimiser.step()
    return {name: p.detach() for name, p in model.named_parameters()}


SMALL, LARGE = [(32, 32), (64, 32), (32, 64), (32, 32)], [(80, 80), (80, 160), (160, 80), (80, 80)]


@pytest.mark.parametrize("shapes", [SMALL, LARGE], ids=["padded to one shape", "shape by shape"])
def test_muon_is_pytorchs_muon(shapes: list[tuple[int, int]]) -> None:
    torch.manual_seed(0)
    model = Matrices(shapes)
    given = gradients_of(model, 5)
    ours = moved(model, [OptimConfig(name="muon", muon_lr=0.02)] * 2, given, [1.0, 1.0])
    reference = torch.optim.Muon(
        model.parameters(), lr=0.02, momentum=0.95, ns_steps=5, weight_decay=0.0, eps=1e-7
    )  # fmt: skip
    for name, wanted in theirs_after(reference, model, given).items():
        for mine in ours.flat.tensors(ours.flat.values)[name]:  # PyTorch orthogonalises in bfloat16: 8 bits
            torch.testing.assert_close(mine, wanted, rtol=0, atol=0.02 * 5 * 0.05)


def test_adamw_is_pytorchs_adamw_for_members_with_numbers_of_their_own() -> None:
    torch.manual_seed(0)
    model = Matrices([(5, 3), (7,)])
    given = gradients_of(model, 6)
    first = {name: p.detach().clone() for name, p in model.named_parameters()}
    cfgs = [
        OptimConfig(lr=0.01, weight_decay=0.3),
        OptimConfig(lr=0.02, weight_decay=0.0, betas=(0.8, 0.95)),
    ]
    ours = moved(model, cfgs, given, [1.0, 0.5])
    for member, (cfg, share) in enumerate(zip(cfgs, [1.0, 0.5], strict=True)):
        model.load_state_dict(first)
        reference = torch.optim.AdamW(
            model.parameters(), lr=cfg.lr * share, betas=cfg.betas, weight_decay=cfg.weight_decay
        )
        for name, wanted in theirs_after(reference, model, given).items():
            mine = ours.flat.tensors(ours.flat.values)[name][member]
            torch.testing.assert_close(mine, wanted, rtol=0, atol=1e-12)


def test_a_state_of_another_version_is_refused_in_one_line() -> None:
    model = build(add3().model, 0)
    optimisers = Optimisers(model, [add3().optim])
    optimisers.start()
    with pytest.raises(CheckpointError, match="train the run again"):
        optimisers.load(0, {"adamw.0.exp_avg": torch.zeros(3)})


def test_orthogonalise_brings_singular_values_near_one() -> None:
    torch.manual_seed(0)
    for shape in ((3, 32, 32), (2, 64, 32), (2, 32, 64)):
        values = torch.linalg.svdvals(orthogonalise(torch.randn(shape), 5))
        assert values.max() < 1.3
        assert values.median() > 0.6


def test_muon_moves_matrices_of_blocks_and_adamw_the_rest() -> None:
    flat = Optimisers(build(add3().model, 0), [add3().optim]).flat
    assert flat.n_first == 2 * (4_096 + 4_096)
    assert flat.values.shape == (1, 17_760)


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
    assert planned.after_accuracy(100, 0.89) == planned
    early = planned.after_accuracy(100, 0.9)
    assert (early.begin, early.end) == (100, 150)
    assert early.after_accuracy(120, 1.0) == early
    assert planned.after_accuracy(790, 1.0).end == 840
    assert planned.after_accuracy(900, 1.0) == planned
    never = Schedule.planned(OptimConfig(hold=0.8), 1000)
    assert never.after_accuracy(100, 1.0) == never


def test_gradients_are_clipped_to_the_norm() -> None:
    torch.manual_seed(0)
    model = Matrices([(100, 40), (500,)])
    ones = [{name: torch.ones_like(p) for name, p in model.named_parameters()}]
    optimisers = moved(model, [OptimConfig(clip=1.0), OptimConfig(clip=2.0)], ones, [1.0, 1.0])
    moments = optimisers.members["adamw"].state(0)["mean"], optimisers.members["adamw"].state(1)["mean"]
    assert moments[0][0].item() == pytest.approx(0.1 / 4_500**0.5, rel=1e-3)
    assert moments[1][0].item() == pytest.approx(0.2 / 4_500**0.5, rel=1e-3)
