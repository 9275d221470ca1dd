"""Sets of answer tokens, and metrics of one's own from a file, as the command line and Python take them."""

from pathlib import Path

import numpy as np
import pytest
import torch

import algoscope as ag
from algoscope.core.errors import AlgoscopeError
from algoscope.lenses.interventions.metrics import METRICS, Reading
from random_models import subject

CLEAN, CORRUPT = "12+34", "12+45"
FILE = "def margin(logits):\n    return logits[:, -1, 1] - logits[:, -1, 3]\n\ndef whole(logits):\n    return logits\n"
PAIR = ("planted:induction", "--clean", "abcda", "--corrupt", "cbada")


@pytest.fixture
def metrics(tmp_path: Path) -> str:
    file = tmp_path / "metrics.py"
    file.write_text(FILE + "def fails(logits):\n    raise ValueError('no')\n\nNUMBER = 3\n")
    return str(file)


@pytest.mark.parametrize("lens", [ag.lenses.patch, ag.lenses.attribution_patching])
def test_several_answer_tokens_count_as_their_log_sum_exp(lens) -> None:
    model, right, wrong = subject(), [4, 7], [1, 2, 3]

    def by_hand(logits: torch.Tensor) -> torch.Tensor:
        last = logits[:, where]
        return last[:, right].logsumexp(-1) - last[:, wrong].logsumexp(-1)

    sets = lens(model, CLEAN, CORRUPT, target=right, rival=wrong, sites=["head"])
    where = (
        next(
            i
            for i, (a, b) in enumerate(zip(*map(model.task.sequence, (CLEAN, CORRUPT)), strict=True))
            if i > 5 and a != b
        )
        - 1
    )
    own = lens(model, CLEAN, CORRUPT, metric=by_hand, sites=["head"])
    assert sets["baselines"] == pytest.approx(own["baselines"])
    np.testing.assert_allclose(sets["head"].values, own["head"].values, atol=1e-10)
    assert (sets["target"], sets["rival"]) == ([["4", "7"]], [["1", "2", "3"]])
    once = lens(model, CLEAN, CORRUPT, target=["4", "7", "4"], rival=["1", "2", "3"], sites=["head"])
    np.testing.assert_allclose(once["head"].values, sets["head"].values, atol=1e-12)


def test_the_probability_of_several_tokens_is_their_sum_and_any_of_them_is_right() -> None:
    logits, rival = torch.randn(3, 10, generator=torch.Generator().manual_seed(0)), torch.zeros(3, 1, dtype=torch.long)
    target = torch.tensor([[4, 7]]).expand(3, -1)
    both = METRICS["probability"](logits, Reading(logits, logits, target, rival))
    torch.testing.assert_close(both, logits.softmax(-1)[:, [4, 7]].sum(-1))
    every = ag.lenses.patch(
        "planted:induction", "abcda", "cbada", target=["b", "z"], metric="exact_match", sites=["head"]
    )
    assert every["baselines"] == {"clean": 1.0, "corrupt": 0.0}


def test_sets_and_a_metric_in_a_file_on_the_command_line(run, metrics: str) -> None:
    options = ("--target", "b", "--target", "c", "--rival", "d", "--sites", "head", "--quiet")
    code, out, err = run("lens", "patch", *PAIR, *options)
    assert (code, err) == (0, "")
    assert "head L0H1" in out
    code, out, err = run("lens", "patch", *PAIR, "--metric", f"{metrics}:margin", "--sites", "head", "--quiet")
    assert (code, err) == (0, "")
    assert "of the margin gap" in out
    code, _, err = run("patch", *PAIR, "--metric", f"{metrics}:whole")
    assert (code, err.count("\n")) == (2, 1)
    assert "must return a number per input" in err


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("fails", "failed with ValueError: no"),
        ("NUMBER", "not a metric"),
        ("none", "unknown name"),
        ("", "does not name"),
    ],
)
def test_a_file_without_such_a_metric_is_one_line(metrics: str, name: str, words: str) -> None:
    with pytest.raises(AlgoscopeError, match=words) as raised:
        ag.lenses.path_patching("planted:induction", "abcda", "cbada", metric=f"{metrics}:{name}")
    assert "\n" not in str(raised.value)


def test_no_answer_at_all_is_one_line() -> None:
    with pytest.raises(AlgoscopeError, match="no answer: give one, or several"):
        ag.lenses.patch("planted:induction", "abcda", "cbada", target=[])
