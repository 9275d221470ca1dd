"""Is the answer right, and at what loss: held to PyTorch's own functions."""

import pytest
import torch
import torch.nn.functional as F

from algoscope.config import TrainConfig
from algoscope.networks.evaluation import answers_right, cross_entropy, evaluate, kl_divergence, margins, tokens_right
from algoscope.tasks.digits.addition import Addition

LOGITS = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
TARGETS = torch.randint(5, (3, 4), generator=torch.Generator().manual_seed(1))


def test_losses_and_divergences_are_those_of_pytorch() -> None:
    plain = F.cross_entropy(LOGITS.flatten(0, 1), TARGETS.flatten(), reduction="none").view(3, 4)
    torch.testing.assert_close(cross_entropy(LOGITS, TARGETS), plain)
    reference, prediction = LOGITS[0].log_softmax(-1), LOGITS[1].log_softmax(-1)
    theirs = F.kl_div(prediction, reference, reduction="none", log_target=True).sum(-1)
    torch.testing.assert_close(kl_divergence(LOGITS[0], LOGITS[1]), theirs)
    assert (kl_divergence(LOGITS[0], LOGITS[0] + 7) < 1e-12).all()


def test_of_equal_logits_the_lower_token_is_the_answer() -> None:
    tied = torch.tensor([[1.0, 3.0, 3.0]])
    assert tokens_right(tied, torch.tensor([1])).tolist() == [True]
    assert tokens_right(tied, torch.tensor([2])).tolist() == [False]
    assert margins(tied, torch.tensor([0])).tolist() == [-2.0]
    assert margins(tied, torch.tensor([2])).tolist() == [0.0]


def test_an_answer_is_right_where_all_its_tokens_are() -> None:
    best = LOGITS.argmax(dim=-1)
    best[1, 2] = (best[1, 2] + 1) % 5
    assert answers_right(LOGITS, best).tolist() == [True, False, True]


def test_portions_do_not_change_what_is_counted() -> None:
    task = Addition(n_digits=2)
    tokens = task.at(torch.arange(3_000))
    logits = F.one_hot(tokens[:, 1:], task.d_vocab).double()
    logits[:7, -1] = 0.0  # the end-of-sequence of seven answers: token 0 comes first
    rows = {tuple(row): i for i, row in enumerate(tokens.tolist())}

    def logits_of(some: torch.Tensor) -> torch.Tensor:
        return logits[[rows[tuple(row)] for row in some.tolist()]]

    loss, accuracy = evaluate(task, tokens, logits_of, slice(None), TrainConfig(steps=1, batch=1))
    assert accuracy == 1 - 7 / 3_000
    whole = F.cross_entropy(logits.flatten(0, 1).float(), tokens[:, 1:].flatten())
    assert loss == pytest.approx(float(whole), abs=1e-6)
