"""The verdict: exact, caught where it must be, and equal to real decoding."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import beta

import algoscope as ag
from algoscope.config import ModelConfig
from algoscope.core.errors import CheckpointError, ConfigError, UnknownNameError
from algoscope.core.finding import Finding
from algoscope.networks.build import build
from algoscope.networks.shared_prefixes import plain_logits
from algoscope.subjects.subject import Subject
from algoscope.tasks.digits.addition import Addition
from algoscope.tasks.strings.reversal import Reversal
from algoscope.verdicts.certification.certify import AGAIN, _Count, certify
from algoscope.verdicts.certification.domain import domain_of
from conftest import WEIGHTS

TWO = Addition(n_digits=2)


def random_subject(seed: int = 0, task: Addition = TWO, **shape) -> Subject:
    cfg = ModelConfig(d_vocab=14, n_ctx=task.n_ctx, init_embed_std=1.0, **shape)
    return Subject("random", build(cfg, seed), task)


class ShortSighted(Subject):
    """Adds column by column and lets a carry run through `reach` columns of nine at most: wrong on longer chains."""

    def __init__(self, task: Addition, reach: int) -> None:
        super().__init__("short-sighted", build(ModelConfig(d_vocab=14, n_ctx=task.n_ctx), 0), task)
        self.reach = reach

    def next_tokens(self, prompts: torch.Tensor) -> torch.Tensor:
        """The whole answer, from the prompt alone."""
        task = self.task
        whole = torch.cat([prompts, torch.zeros(len(prompts), task.n_ctx - prompts.shape[1], dtype=torch.long)], dim=1)
        columns = task.columns(whole)
        digits = []
        for place in range(task.n_digits + 1):
            carry = torch.zeros(len(prompts), dtype=torch.bool)
            for below in range(1, self.reach + 2):
                if place - below < 0:
                    break
                nines = (columns[:, place - below + 1 : place] == 9).all(dim=1)
                carry |= nines & (columns[:, place - below] >= 10)
            column = columns[:, place] if place < task.n_digits else torch.zeros(len(prompts), dtype=torch.long)
            digits.append((column + carry) % 10)
        digits.append(torch.full((len(prompts),), task.vocabulary.index("<EOS>")))
        return torch.stack(digits, dim=1)

    def answer_logits(self, tokens: torch.Tensor) -> torch.Tensor:
        answers = self.next_tokens(tokens[:, : self.task.prompt_length])
        return 10.0 * torch.nn.functional.one_hot(answers, 14).float()

    def generate_tokens(self, prompts: torch.Tensor, n_new: int, *, use_cache: bool = True) -> torch.Tensor:
        return self.next_tokens(prompts)[:, :n_new]

    def to_dtype(self, dtype: torch.dtype) -> "ShortSighted":
        return self


# ---------------------------------------------------------------------- teacher forcing decides greedy decoding


@settings(max_examples=8)
@given(seed=st.integers(0, 999), cached=st.booleans())
def test_one_forward_decides_what_greedy_decoding_answers(seed: int, cached: bool) -> None:
    task = Addition(n_digits=1)
    subject = random_subject(seed, task)
    tokens = task.at(torch.arange(100))
    targets = tokens[:, task.prompt_length :]
    forced = (subject.answer_logits(tokens).argmax(-1) == targets).all(1)
    decoded = (subject.generate_tokens(tokens[:, : task.prompt_length], 3, use_cache=cached) == targets).all(1)
    assert torch.equal(forced, decoded)


def test_it_decides_so_on_a_half_trained_model() -> None:
    subject = ag.open(f"file:{WEIGHTS / 'half.safetensors'}")
    tokens = TWO.at(torch.arange(10_000))
    decoded = subject.generate_tokens(tokens[:, : TWO.prompt_length], 4)
    wrong = int((decoded != tokens[:, TWO.prompt_length :]).any(1).sum())
    assert 0 < wrong < 10_000, "the test needs a model that is sometimes right"
    facts = certify(subject).facts
    assert facts["wrong"] == wrong == sum(row["wrong"] for row in facts["by_class"])
    assert (facts["robust"], len(facts["counterexamples"])) == (False, 20)
    for shown in facts["counterexamples"]:
        assert subject.generate(shown["input"]) == shown["got"] != shown["expected"]
        assert TWO.expected(shown["input"]) == shown["expected"]


# ---------------------------------------------------------------------- a model that errs is caught


def test_the_demo_is_right_on_every_sum(demo: dict) -> None:
    facts = demo["verdict"].facts
    assert facts["domain"] == {"size": 1_000_000, "method": "exhaustive", "checked": 1_000_000}
    assert (facts["wrong"], facts["accuracy"], facts["counterexamples"]) == (0, 1.0, [])
    assert facts["min_margin"] > 2 * facts["float_error"] > 0
    assert facts["robust"]


@pytest.mark.long
def test_a_weight_nudged_until_it_errs_on_a_few_is_caught(stored_adder: Subject) -> None:
    model = build(stored_adder.cfg, 0)
    model.load_state_dict(stored_adder.model.state_dict())
    nine, eight = model.embed.weight.data[9], model.embed.weight.data[8]
    nine += 0.3 * torch.nn.functional.normalize(eight - nine, dim=0)
    subject = Subject("nudged", model, stored_adder.task)
    facts = certify(subject).facts
    wrong = facts["wrong"]
    assert 0 < wrong < 10_000
    assert not facts["robust"]
    assert facts["min_margin"] < 0
    assert sum(row["wrong"] for row in facts["by_class"]) == wrong
    assert len(facts["counterexamples"]) == min(wrong, 20)
    for shown in facts["counterexamples"]:
        assert subject.generate(shown["input"]) == shown["got"] != shown["expected"]
        assert subject.task.expected(shown["input"]) == shown["expected"]


@pytest.mark.parametrize(("reach", "right"), [(0, "S0 S1"), (1, "S0 S1 S2"), (2, "S0 S1 S2 S3")])
def test_a_model_that_only_fails_on_long_carry_chains(reach: int, right: str) -> None:
    task = Addition(n_digits=3)
    facts = certify(ShortSighted(task, reach)).facts
    all_right = {row["class"] for row in facts["by_class"] if row["wrong"] == 0}
    assert " ".join(sorted(all_right)) == right
    failing = [row for row in facts["by_class"] if row["class"] not in all_right]
    assert all(row["wrong"] == row["checked"] > 0 for row in failing)
    assert facts["wrong"] == sum(row["checked"] for row in failing) == {0: 90_000, 1: 4_500, 2: 0}[reach]


def test_classes_by_pattern_add_up() -> None:
    facts = certify(ShortSighted(TWO, 0), by="pattern").facts
    wrong = {row["class"]: row["wrong"] for row in facts["by_class"] if row["wrong"]}
    assert wrong == {"9c": 450}
    assert sum(row["checked"] for row in facts["by_class"]) == 10_000


@settings(max_examples=5)
@given(seed=st.integers(0, 999))
def test_positions_are_those_at_which_decoding_first_errs(seed: int) -> None:
    task = Addition(n_digits=1)
    subject, tokens = random_subject(seed, task), task.at(torch.arange(100))
    targets = tokens[:, task.prompt_length :]
    decoded = subject.generate_tokens(tokens[:, : task.prompt_length], 3)
    first = (decoded != targets).long().cumsum(1).eq(1) & (decoded != targets)
    forced = plain_logits(subject.model, tokens[:, :-1], task.answer_slice).argmax(-1) != targets
    facts = certify(subject).facts
    assert [row["first_wrong"] for row in facts["by_position"]] == first.sum(0).tolist()
    assert [row["wrong"] for row in facts["by_position"]] == forced.sum(0).tolist()
    assert sum(row["first_wrong"] for row in facts["by_position"]) == facts["wrong"] > 0


def test_a_missed_carry_is_wrong_in_the_column_it_should_have_reached() -> None:
    facts = certify(ShortSighted(TWO, 0)).facts
    assert [(row["position"], row["meaning"], row["wrong"], row["first_wrong"]) for row in facts["by_position"]] == [
        (6, "units", 0, 0), (7, "tens", 0, 0), (8, "hundreds", 450, 450), (9, "end", 0, 0)
    ]  # fmt: skip


def test_tokens_of_an_answer_have_names() -> None:
    assert Addition(n_digits=3, reversed=False).answer_names == ("thousands", "hundreds", "tens", "units", "end")
    assert Addition(n_digits=5).answer_names[-3:] == ("10^4", "10^5", "end")
    for task in (Addition(), ag.Modular(p=7), ag.Reversal(), ag.Copying(), ag.Group()):
        assert len(task.answer_names) == task.n_ctx - task.prompt_length
        assert task.decode(task.at(torch.tensor([0]))[0, -1:].tolist()) == "<EOS>" or "end" not in task.answer_names
    assert ag.Modular(p=7).answer_names == ("token 1",)
    assert ag.Reversal().answer_names[-2:] == ("token 5", "end")


def test_a_tie_is_decided_as_decoding_decides_it() -> None:
    class Undecided(ShortSighted):
        def answer_logits(self, tokens: torch.Tensor) -> torch.Tensor:
            return torch.zeros(len(tokens), 4, 14)  # greedy decoding takes token 0

    facts = certify(Undecided(TWO, 2)).facts
    assert facts["wrong"] == 10_000
    assert facts["min_margin"] == 0


def test_logits_that_are_not_numbers_are_refused() -> None:
    subject = random_subject()
    subject.model.embed.weight[5] = float("nan")
    with pytest.raises(CheckpointError, match="not finite"):
        certify(subject)


# ---------------------------------------------------------------------- numbers


def test_margin_and_float_error_are_those_of_a_plain_computation() -> None:
    subject = random_subject(3)
    tokens = TWO.at(torch.arange(10_000))
    plain = plain_logits(subject.model, tokens[:, :-1], TWO.answer_slice).double()
    exact = plain_logits(subject.to_dtype(torch.float64).model, tokens[:, :-1], TWO.answer_slice)
    targets = tokens[:, TWO.prompt_length :]
    right = plain.gather(-1, targets[..., None])[..., 0]
    rival = plain.scatter(-1, targets[..., None], -torch.inf).amax(-1)
    facts = certify(subject).facts
    assert facts["min_margin"] == pytest.approx((right - rival).amin().item(), abs=1e-5)
    assert 0 < facts["float_error"] <= 3 * (plain - exact).abs().max().item()


def test_float_error_of_a_float64_model_is_zero() -> None:
    facts = certify(random_subject().to_dtype(torch.float64)).facts
    assert facts["float_error"] == 0
    assert facts["dtype"] == "float64"


def test_a_sample_has_an_interval_and_a_whole_domain_has_none() -> None:
    facts = certify(ShortSighted(TWO, 0), sample=2_000).facts
    assert facts["domain"] == {"size": 10_000, "method": "sampled", "checked": 2_000}
    low, high = facts["interval_95"]
    wrong = facts["wrong"]
    assert wrong > 0
    assert low == pytest.approx(beta.ppf(0.025, 2_000 - wrong, wrong + 1))
    assert high == pytest.approx(beta.ppf(0.975, 2_000 - wrong + 1, wrong))
    assert certify(ShortSighted(TWO, 0)).facts["interval_95"] is None


def test_large_domains_are_sampled_and_say_so() -> None:
    domain = domain_of(Reversal(length=12))
    assert (domain.method, domain.size, domain.checked) == ("sampled", 8**12, 100_000)


def test_json_is_that_of_the_interface() -> None:
    plain = json.loads(certify(ShortSighted(TWO, 0)).to_json())
    assert {
        "subject", "task", "weights_sha256", "dtype", "domain", "wrong", "accuracy", "interval_95", "by_class",
        "by_position", "min_margin", "float_error", "robust", "counterexamples", "seconds",
    } <= set(plain)  # fmt: skip
    assert set(plain["domain"]) == {"size", "method", "checked"}
    assert {"class", "size", "checked", "wrong"} <= set(plain["by_class"][0])
    assert set(plain["counterexamples"][0]) == {"input", "expected", "got"}


def test_a_finding_survives_json() -> None:
    verdict = certify(ShortSighted(TWO, 0))
    again = Finding.from_json(verdict.to_json())
    assert again.facts == verdict.facts
    for one, other in zip(verdict.panels, again.panels, strict=True):
        assert one.axes == other.axes
        np.testing.assert_array_equal(one.values, other.values)


def test_counterexamples_are_limited() -> None:
    assert len(certify(ShortSighted(TWO, 0), limit_counterexamples=3).facts["counterexamples"]) == 3
    assert certify(ShortSighted(TWO, 0), limit_counterexamples=0).facts["counterexamples"] == []


def test_bad_requests_are_named() -> None:
    with pytest.raises(UnknownNameError, match="chain, pattern"):
        certify(random_subject(), by="weekday")
    with pytest.raises(ConfigError, match="-5"):
        certify(random_subject(), sample=-5)


# ---------------------------------------------------------------------- work saved, counted and not timed


def test_most_of_the_work_is_shared(adder: Subject) -> None:
    """Positions that the blocks compute for 4,000 sums: 6.1 of 12 for each."""
    positions = []
    for block in adder.model.blocks[:1]:
        block.register_forward_hook(lambda module, args, out: positions.append(args[0].shape[0] * args[0].shape[1]))
    tokens = adder.task.at(torch.arange(4_000))
    try:
        adder.answer_logits(tokens)
    finally:
        for block in adder.model.blocks:
            block._forward_hooks.clear()
    assert sum(positions) < 6.2 * 4_000


@pytest.mark.parametrize("wrong", [False, True], ids=["all right", "all wrong"])
def test_memory_does_not_grow_with_the_inputs_checked(wrong: bool) -> None:
    """What a count keeps of 10 and of 100 portions is equally large: tensors are counted with the storage they hold."""

    def kept(n_portions: int) -> int:
        count = _Count(TWO, n_classes=1, limit=20, spread=n_portions * 10_000 // AGAIN)
        for _ in range(n_portions):
            tokens = TWO.at(torch.arange(10_000))
            margin = torch.linspace(-1.0 if wrong else 1.0, 2.0, len(tokens))
            count.add(tokens, margin, torch.full((len(tokens), 4), wrong), torch.zeros(len(tokens), dtype=torch.long))
        assert sum(map(len, count.wrong_rows)) == (20 if wrong else 0)
        held = [count.hardest, count.hardest_margins, *count.others, *count.wrong_rows]
        return sum({tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in held}.values())

    assert kept(100) < 1.1 * kept(10) < 1e6
