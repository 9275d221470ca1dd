"""Subjects of which only the logits are known."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import algoscope as ag
from algoscope.core.errors import AlgoscopeError, SubjectError, TaskMismatchError
from algoscope.subjects.black_box import black_box
from algoscope.verdicts.certification.domain import domain_of

TASK = ag.Addition(n_digits=3)
ADDER = ag.open("planted:carry-adder")


def logits(tokens: Tensor) -> Tensor:
    """A function from tokens to logits: the planted adder, whose answers are known."""
    return copy.copy(ADDER.model)(tokens)


def last(tokens: Tensor) -> Tensor:
    return logits(tokens)[:, -1]


BOX = ag.open(logits, task=TASK)


def test_a_function_answers_as_the_model_that_it_calls() -> None:
    assert BOX.is_black_box
    assert not ADDER.is_black_box
    texts = ["123+456", "999+1", "0+0"]
    assert BOX.generate_many(texts) == ADDER.generate_many(texts)
    assert BOX.lay_out("7+8").is_right
    tokens = TASK.edge_inputs()
    torch.testing.assert_close(BOX.answer_logits(tokens), ADDER.answer_logits(tokens), rtol=0, atol=1e-5)
    torch.testing.assert_close(BOX(tokens[:, :-1]), ADDER(tokens[:, :-1]))


class _Named:
    def __init__(self, logits: Tensor) -> None:
        self.logits = logits


@pytest.mark.parametrize(
    "form",
    [
        last,
        lambda tokens: last(tokens)[:, None],
        lambda tokens: (logits(tokens), None),
        lambda tokens: {"loss": 0, "logits": logits(tokens)},
        lambda tokens: _Named(logits(tokens)),
        lambda tokens: logits(tokens).requires_grad_(),
        lambda tokens: logits(tokens.mul_(1)),
        lambda tokens: torch.nn.functional.pad(logits(tokens), (0, 5), value=-30.0),
    ],
)
def test_logits_come_in_any_form(form: Any) -> None:
    box, tokens = ag.open(form, task=TASK), TASK.edge_inputs()
    torch.testing.assert_close(
        box.answer_logits(tokens)[..., : TASK.d_vocab], ADDER.answer_logits(tokens), rtol=0, atol=1e-5
    )
    assert box.generate_many(["123+456", "1+2"]) == ADDER.generate_many(["123+456", "1+2"])


@pytest.mark.parametrize(
    ("form", "message"),
    [
        (lambda tokens: logits(tokens).numpy(), r"returns a ndarray of shape"),
        (lambda tokens: None, r"returns None: logits are a tensor of floats \[batch pos d_vocab\]"),
        (lambda tokens: logits(tokens).argmax(-1), r"returns a tensor of int64 \[13, 12\] on cpu"),
        (lambda tokens: logits(tokens).mean(0), r"returns \[12, 14\] for tokens of shape \[13, 12\]"),
        (lambda tokens: logits(tokens).transpose(0, 1), r"returns \[12, 13, 14\] for tokens of shape \[13, 12\]"),
        (lambda tokens: logits(tokens[:, :-1]), r"returns \[13, 11, 14\]"),
        (lambda tokens: tokens.nothing, r"cannot read tokens of shape \[13, 12\]: AttributeError"),
        (lambda: 3, r"cannot read tokens of shape \[13, 12\]: TypeError"),
        (lambda tokens: exit(3), r"cannot read tokens of shape \[13, 12\]: SystemExit: 3"),
        (lambda tokens: torch.zeros(*tokens.shape, 14, device="meta"), r"on meta"),
        (lambda tokens: logits(tokens)[:, :, :9], r"has 9 logits, the task addition needs 13"),
    ],
)
def test_what_does_not_return_logits_is_one_line(form: Any, message: str) -> None:
    with pytest.raises((SubjectError, TaskMismatchError), match=message):
        ag.open(form, task=TASK)


@pytest.mark.parametrize(
    "ask",
    [
        lambda: BOX.model,
        lambda: BOX.cfg,
        lambda: BOX.sites,
        lambda: BOX.run([[1, 2]], record=[("z", 0)]),
        lambda: BOX.run([[1, 2]], edits=ag.Zero(("z", 0))),
        lambda: BOX.run_each([[1, 2]], ag.Zero(("z", 0))),
        lambda: BOX.run_with_cache([[1, 2]]),
        lambda: BOX.unembed(torch.zeros(1, 1, 3)),
        lambda: BOX.token_embedding(),
        lambda: BOX.folded(),
        lambda: ag.params(BOX),
        lambda: ag.export(BOX, "transformerlens", "x.safetensors"),
        lambda: ag.lenses.attention(BOX, "1+2"),
        lambda: ag.lenses.roles(BOX),
        lambda: ag.lenses.patch(BOX, "1+2", "1+3"),
        lambda: ag.lenses.weights(BOX),
    ],
)
def test_what_needs_more_than_logits_says_so_in_one_line(ask: Any) -> None:
    with pytest.raises(SubjectError, match=r"logits is a black box, a function from tokens to logits: its .* not "):
        ask()
    assert (BOX.weights_sha256, BOX.before_training()) == (None, None)


class Counting(nn.Module):
    """It has no attention: it adds up one-hot tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.drop, self.out = nn.Dropout(0.5), nn.Linear(TASK.d_vocab, TASK.d_vocab)

    def forward(self, tokens: Tensor) -> Tensor:
        seen = nn.functional.one_hot(tokens, TASK.d_vocab).to(self.out.weight.dtype)
        return self.out(self.drop(seen.cumsum(1)))


def test_a_module_is_read_in_evaluation_mode_and_stays_as_it_is() -> None:
    module = Counting()
    before, state = copy.deepcopy(module.state_dict()), torch.get_rng_state()
    box = black_box(module, "counting", TASK, why="it has no attention")
    tokens = TASK.edge_inputs()[:, :-1]
    torch.testing.assert_close(box(tokens), box(tokens), rtol=0, atol=0)
    assert module.training
    assert all(weight.requires_grad for weight in module.parameters())
    assert torch.equal(torch.get_rng_state(), state)
    module.out.weight.data.zero_()
    assert not torch.equal(box(tokens), copy.deepcopy(module).eval()(tokens))
    assert before.keys() == module.state_dict().keys()
    assert box.to_dtype(torch.float64).dtype == torch.float64
    assert black_box(module, "counting", TASK, dtype=torch.bfloat16).dtype == torch.bfloat16


class Recurrent(nn.Module):
    """It reads tokens [pos batch], unless it is told otherwise."""

    def __init__(self, batch_first: bool = False) -> None:
        super().__init__()
        self.embed, self.out = nn.Embedding(TASK.d_vocab, 8), nn.Linear(8, TASK.d_vocab)
        self.rnn = nn.GRU(8, 8, batch_first=batch_first)

    def forward(self, tokens: Tensor) -> Tensor:
        self.seen = self.rnn(self.embed(tokens))[0]  # with its graph, as modules keep what they want to look at
        return self.out(self.seen)


def test_which_axis_of_tokens_a_module_takes_for_the_batch_is_found() -> None:
    sequence_first = Recurrent()
    batch_first = Recurrent(batch_first=True)
    batch_first.load_state_dict(sequence_first.state_dict())
    tokens = TASK.edge_inputs()[:, :-1]
    expected = batch_first(tokens).detach()
    for module in (sequence_first, batch_first, nn.DataParallel(batch_first)):
        torch.testing.assert_close(black_box(module, "recurrent", TASK)(tokens), expected)
    with pytest.raises(SubjectError, match=r"gives an input other logits, by up to .* where others are read with it"):
        ag.open(lambda tokens: sequence_first(tokens), task=TASK)


def test_a_module_that_needs_what_only_the_user_knows_says_so() -> None:
    class Masked(Counting):
        def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:  # type: ignore[override]
            return super().forward(tokens)

    class Hidden(Counting):
        def forward(self, tokens: Tensor) -> Any:
            return {"last_hidden_state": super().forward(tokens)}

    with pytest.raises(SubjectError, match="needs a mask, whose meaning only you know"):
        black_box(Masked(), "masked", TASK)
    with pytest.raises(SubjectError, match="hidden returns a dict"):
        black_box(Hidden(), "hidden", TASK)


def test_a_function_that_gives_other_logits_each_time_has_a_note() -> None:
    box = ag.open(lambda tokens: torch.rand(*tokens.shape, TASK.d_vocab), task=TASK)
    assert "two runs on the same input differ by up to" in box.note
    assert "two runs" not in BOX.note


def test_a_function_that_changes_its_form_with_the_length_is_refused() -> None:
    def fickle(tokens: Tensor) -> Tensor:
        return logits(tokens) if tokens.shape[1] == 12 else last(tokens)

    with pytest.raises(SubjectError, match="it must give the same for every length"):
        ag.open(fickle, task=TASK).answer_logits(TASK.edge_inputs())


def test_a_model_of_free_text_needs_only_a_tokenizer() -> None:
    def following(tokens: Tensor) -> Tensor:
        return nn.functional.one_hot((tokens + 1) % 26, 26).float()

    follow = ag.open(following, tokenizer="abcdefghijklmnopqrstuvwxyz")
    assert follow.generate("xy", 3) == "zab"
    assert follow.generate_many(["xy", "a"], 2) == ["za", "bc"]
    with pytest.raises(SubjectError, match=r"needs a task, such as .* or a tokenizer"):
        ag.open(logits)


# ---------------------------------------------------------------------- what needs only logits


def unlucky(tokens: Tensor) -> Tensor:
    """Right but for the units of 111+222 and their like: the last digits 1 and 2."""
    out = logits(tokens)
    if tokens.shape[1] >= 8:
        bad = (tokens[:, 2] == 1) & (tokens[:, 6] == 2)
        out[bad, 7] = out[bad, 7].roll(1, -1)
    return out


def test_certify_counts_what_a_function_answers_wrongly() -> None:
    verdict = ag.certify(unlucky, task=TASK, sample=4_000)
    tokens = torch.cat(list(domain_of(TASK, 4_000).chunks(4_000, torch.device("cpu"))))
    assert verdict["wrong"] == int(((tokens[:, 2] == 1) & (tokens[:, 6] == 2)).sum()) > 0
    assert (verdict["float_error"], verdict["robust"], verdict["weights_sha256"]) == (None, False, None)
    assert "decides itself in which float type it computes" in verdict["float_error_unknown"]
    assert verdict["note"].startswith("a black box: a function from tokens to logits")
    assert {row["input"][2] + row["input"][6] for row in verdict["counterexamples"]} == {"12"}
    assert [row["first_wrong"] for row in verdict["by_position"]] == [verdict["wrong"], 0, 0, 0, 0]
    assert ag.Finding.from_json(verdict.to_json()).provenance["weights_sha256"] is None


def test_a_function_that_looks_ahead_is_judged_by_what_it_answers() -> None:
    def looks_ahead(tokens: Tensor) -> Tensor:  # with the answer in sight it copies it; alone it answers 0
        right = nn.functional.one_hot(tokens.roll(-1, 1), TASK.d_vocab).float()
        right[:, -1] = nn.functional.one_hot(torch.zeros_like(tokens[:, 0]), TASK.d_vocab).float()
        return right

    verdict = ag.certify(looks_ahead, task=TASK, sample=500)
    assert verdict["wrong"] > 400


def test_a_module_is_certified_with_its_float_error() -> None:
    box = black_box(Counting(), "counting", TASK)
    verdict = ag.certify(box, sample=200)
    assert 0 < verdict["float_error"] < 1e-4
    assert not verdict["robust"]


def test_a_logit_that_is_not_finite_is_named_with_its_input() -> None:
    def poisoned(tokens: Tensor) -> Tensor:
        return logits(tokens).masked_fill((tokens[:, 0] == 7)[:, None, None], torch.nan)

    with pytest.raises(SubjectError, match=r"poisoned gives a logit that is not finite for 7"):
        ag.certify(poisoned, task=TASK, sample=500)
    with pytest.raises(AlgoscopeError, match=r"poisoned gives logits that are not finite"):
        ag.open(poisoned, task=TASK).generate("700+1")


def test_a_report_says_what_each_lens_cannot_see(tmp_path: Path) -> None:
    small = ag.Addition(n_digits=1)

    def rule(tokens: Tensor) -> Tensor:
        whole = small.completed(tokens[:, :4])
        return nn.functional.one_hot(whole[:, 1 : tokens.shape[1] + 1], small.d_vocab).float()

    page = ag.report(rule, tmp_path / "page.html", task=small).read_text()
    assert '<b class="ok">0 wrong</b>' in page
    assert page.count("Left out: rule is a black box") > 5
    assert "edge cases and 200/200 random inputs decoded right" in page
