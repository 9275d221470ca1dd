"""Verdicts over domains too large to go through: classes counted exactly, drawn from exactly, and honest bounds."""

import json

import numpy as np
import pytest
import torch
from scipy.stats import binom, chisquare

import algoscope as ag
from algoscope.config import ModelConfig
from algoscope.core.errors import ConfigError, UnknownNameError
from algoscope.core.intervals import clopper_pearson, stratified_accuracy, stratified_interval
from algoscope.data import seeded
from algoscope.doors.cli.model_commands import show_verdict
from algoscope.doors.report.report import render
from algoscope.networks.build import build
from algoscope.subjects.subject import Subject
from algoscope.tasks.capabilities import uniform_below
from algoscope.tasks.digits.addition import Addition
from algoscope.tasks.groups.modular import Modular
from algoscope.tasks.strings.reversal import Reversal
from algoscope.verdicts.certification.certify import certify
from algoscope.verdicts.certification.domain import domain_of

CPU = torch.device("cpu")
FIVE, TEN = Addition(n_digits=5), Addition(n_digits=10)
SCHEMES = ("chain", "pattern")


class Flawed(Subject):
    """Right by ten logits, but for the inputs of some classes of a scheme, and some operands: there it says 5, or 6."""

    def __init__(self, task: Addition, bad: set[int], by: str = "chain", numbers: tuple[int, ...] = ()) -> None:
        super().__init__("flawed", build(ModelConfig(d_vocab=14, n_ctx=task.n_ctx, d_model=2, d_mlp=2), 0), task)
        self.bad, self.by, self.numbers = bad, by, numbers

    def said(self, tokens: torch.Tensor) -> torch.Tensor:
        task = self.task
        tokens = task.sequences(*task.operands(tokens))
        answer, first = tokens[:, task.prompt_length :].clone(), task.operands(tokens)[0]
        errs = torch.isin(task.class_of(tokens, self.by), torch.tensor(sorted(self.bad), dtype=torch.long))
        errs |= torch.isin(first, torch.tensor(self.numbers, dtype=torch.long))
        answer[errs, 0] = torch.where(answer[errs, 0] == 5, 6, 5)
        return answer

    def answer_logits(self, tokens: torch.Tensor) -> torch.Tensor:
        return 10.0 * torch.nn.functional.one_hot(self.said(tokens), 14).float()

    def generate_tokens(self, prompts: torch.Tensor, n_new: int, *, use_cache: bool = True) -> torch.Tensor:
        return self.said(prompts)[:, :n_new]

    def to_dtype(self, dtype: torch.dtype) -> "Flawed":
        return self


# ---------------------------------------------------------------------- counting


@pytest.mark.parametrize("by", SCHEMES)
@pytest.mark.parametrize("n", [1, 2, 3])
def test_classes_have_the_sizes_and_the_members_that_going_through_all_sums_finds(n: int, by: str) -> None:
    task = Addition(n_digits=n)
    every = task.at(torch.arange(task.domain_size))
    sizes = task.class_sizes(by)
    assert sizes == tuple(torch.bincount(task.class_of(every, by), minlength=len(sizes)).tolist())
    small = [kind for kind, size in enumerate(sizes) if size <= 10_000]
    kinds = torch.tensor([kind for kind in small for _ in range(sizes[kind])])
    ranks = np.array([rank for kind in small for rank in range(sizes[kind])], dtype=object)
    members = task.class_members(by, kinds, ranks)
    assert torch.equal(task.class_of(members, by), kinds)
    of_these = every[torch.isin(task.class_of(every, by), torch.tensor(small))]
    assert torch.equal(members[task.keys(members).sort().indices], of_these)  # each sum once: a rank of its own


@pytest.mark.parametrize("by", SCHEMES)
def test_sizes_add_up_to_the_domain_exactly(by: str) -> None:
    assert sum(TEN.class_sizes(by)) == 10**20
    assert len(TEN.class_sizes(by)) == len(TEN.class_names(by))
    assert sum(Addition(n_digits=18).class_sizes("chain")) == 10**36


def test_shares_are_the_published_ones() -> None:
    """Derived independently, for uniform 5, 6 and 10 digits; the last row is four nines or more."""
    published = {
        5: [5.03e-2, 7.76e-1, 1.60e-1, 1.26e-2, 8.55e-4, 4.5e-5],
        6: [2.77e-2, 7.59e-1, 1.95e-1, 1.66e-2, 1.26e-3, 9.0e-5],
        10: [2.53e-3, 6.46e-1, 3.16e-1, 3.26e-2, 2.88e-3, 2.70e-4],
    }
    for n, shares in published.items():
        sizes = Addition(n_digits=n).class_sizes("chain")
        ours = [*sizes[:5], sum(sizes[5:])]
        assert [size / 10 ** (2 * n) for size in ours] == pytest.approx(shares, rel=0.006)


# ---------------------------------------------------------------------- drawing


def drawn_within(task: Addition, by: str, kinds: torch.Tensor, seed: int) -> torch.Tensor:
    sizes = np.array(task.class_sizes(by), dtype=object)[kinds.numpy()]
    return task.class_members(by, kinds, uniform_below(sizes, seeded(CPU, seed)))


@pytest.mark.parametrize(("by", "kind"), [("chain", 1), ("chain", 2), ("pattern", 5), ("pattern", 3)])
def test_draws_within_a_class_are_uniform(by: str, kind: int) -> None:
    task = Addition(n_digits=2)
    size = task.class_sizes(by)[kind]
    drawn = drawn_within(task, by, torch.full((5 * size,), kind), 7 + kind)
    assert (task.class_of(drawn, by) == kind).all()
    counts = torch.bincount(task.keys(drawn), minlength=task.domain_size)
    members = task.class_of(task.at(torch.arange(task.domain_size)), by) == kind
    assert counts[~members].sum() == 0
    assert chisquare(counts[members].numpy()).pvalue > 1e-3


@pytest.mark.parametrize("by", SCHEMES)
def test_draws_from_large_domains_are_of_their_class_and_spread_over_it(by: str) -> None:
    n_classes = len(TEN.class_sizes(by))
    kinds = torch.arange(n_classes).repeat_interleave(-(-4_000 // n_classes))
    drawn = drawn_within(TEN, by, kinds, 1)
    assert torch.equal(TEN.class_of(drawn, by), kinds)
    assert torch.equal(drawn, TEN.sequences(*TEN.operands(drawn)))
    assert len(drawn.unique(dim=0)) == len(drawn)
    again = drawn_within(TEN, by, kinds, 1)
    assert torch.equal(drawn, again)


def test_long_whole_numbers_are_drawn_evenly() -> None:
    sizes = np.array([3 << 100] * 2_000 + [5, 1] * 500, dtype=object)
    drawn = uniform_below(sizes, seeded(CPU, 2))
    assert chisquare([np.sum(drawn[:2_000] >> 100 == third) for third in range(3)]).pvalue > 1e-3
    assert chisquare([np.sum(drawn[2_000::2] == value) for value in range(5)]).pvalue > 1e-3
    assert set(drawn[2_001::2]) == {0}
    assert (drawn < sizes).all()


# ---------------------------------------------------------------------- verdicts


def test_an_error_on_long_chains_is_caught_where_a_uniform_sample_misses_it() -> None:
    subject = Flawed(TEN, bad={7, 8, 9, 10})
    assert certify(subject, sample=10_000, n_threads=1).facts["wrong"] == 0
    facts = certify(subject, per_class=100).facts
    assert facts["domain"] == {"size": 10**20, "method": "stratified", "checked": 1_106}
    wrong = {row["class"]: row["wrong"] for row in facts["by_class"] if row["wrong"]}
    assert wrong == {"S7": 100, "S8": 100, "S9": 100, "S10": 100, "edge": 1}  # 9999999999+1
    assert facts["wrong"] == 401
    share = sum(TEN.class_sizes("chain")[7:]) / 10**20
    assert 1 - facts["accuracy"] == pytest.approx(share, rel=1e-6)
    low, high = facts["interval_95"]
    assert low < 1 - share < high < 1
    assert len(facts["counterexamples"]) == 20
    assert not facts["robust"]


def test_every_class_has_its_size_its_draws_and_its_interval() -> None:
    verdict = certify(Flawed(FIVE, bad={5}), per_class=200)
    *classes, edge = json.loads(verdict.to_json())["by_class"]
    assert [row["size"] for row in classes] == list(FIVE.class_sizes("chain"))
    assert {row["checked"] for row in classes} == {200}
    low, high = (1 - bound for bound in clopper_pearson(np.array([0]), np.array([200])))
    assert classes[0]["interval_95"] == pytest.approx([high[0], low[0]])
    assert classes[0]["interval_95"] == pytest.approx([0.025 ** (1 / 200), 1])
    assert classes[5]["interval_95"] == pytest.approx([0, 1 - 0.025 ** (1 / 200)])
    # 99999+1 is an edge case with a chain of five, 99999+99999 is not
    assert (edge["class"], edge["size"], edge["checked"], edge["wrong"]) == ("edge", None, 6, 1)
    assert sum(row["checked"] for row in [*classes, edge]) == verdict["domain"]["checked"]
    assert sum(row["wrong"] for row in [*classes, edge]) == verdict["wrong"]


def test_edge_cases_are_always_among_the_checked_and_no_part_of_the_estimate() -> None:
    facts = certify(Flawed(TEN, bad=set(), numbers=(0,)), per_class=20).facts
    assert facts["wrong"] == facts["by_class"][-1]["wrong"] == 1
    assert facts["counterexamples"][0]["input"] == "0000000000+0000000000="
    assert facts["accuracy"] == 1


def test_classes_with_no_more_inputs_than_draws_are_checked_whole() -> None:
    subject = Flawed(Addition(n_digits=2), bad={2}, numbers=(12,))
    whole = certify(subject).facts
    facts = certify(subject, per_class=500).facts
    assert facts["by_class"][2] == whole["by_class"][2]
    assert facts["by_class"][2]["checked"] == 450
    assert [row["interval_95"] is None for row in facts["by_class"]] == [False, False, True, True]
    low, high = facts["interval_95"]
    assert low <= whole["accuracy"] <= high
    everything = certify(subject, per_class=10**6).facts
    assert [row["wrong"] for row in everything["by_class"][:-1]] == [row["wrong"] for row in whole["by_class"]]
    assert everything["accuracy"] == whole["accuracy"]
    assert everything["interval_95"] == [everything["accuracy"]] * 2


def test_an_adder_set_by_hand_is_right_in_every_class() -> None:
    facts = certify("planted:carry-adder", by="pattern", per_class=30).facts
    assert facts["domain"]["checked"] == 27 * 30 + 6
    assert facts["wrong"] == 0
    assert facts["robust"]


def test_a_random_model_is_wrong_in_every_class() -> None:
    subject = Subject("random", build(ModelConfig(d_vocab=14, n_ctx=FIVE.n_ctx), 0), FIVE)
    facts = certify(subject, per_class=50).facts
    assert all(row["wrong"] == 50 for row in facts["by_class"][:-1])
    assert facts["interval_95"][0] == 0
    assert facts["interval_95"][1] < 0.11


def test_it_is_the_default_where_there_are_too_many_inputs_and_the_task_counts_its_classes() -> None:
    checked = {by: domain_of(TEN, by=by) for by in SCHEMES}
    assert {by: (d.method, d.size, d.checked) for by, d in checked.items()} == {
        "chain": ("stratified", 10**20, 110_000),
        "pattern": ("stratified", 10**20, 2 * 3**10),
    }
    assert domain_of(Addition(n_digits=4)).method == "exhaustive"
    assert domain_of(Addition(n_digits=4), per_class=5).checked == 25
    assert (domain_of(TEN, 5_000).method, domain_of(TEN, 5_000).checked) == ("sampled", 5_000)
    assert domain_of(Reversal(length=12)).method == "sampled"


def test_the_same_draws_every_time() -> None:
    domain = domain_of(TEN, per_class=40)
    portions = list(domain.chunks(300, CPU))
    assert [len(portion) for portion in portions] == [300, 140]
    assert torch.equal(torch.cat(portions), torch.cat(list(domain.chunks(300, CPU))))
    kinds = TEN.class_of(torch.cat(portions), "chain")
    assert torch.bincount(kinds).tolist() == [40] * 11


def test_bad_requests_are_named() -> None:
    subject = Flawed(TEN, bad=set())
    with pytest.raises(ConfigError, match=r"per_class takes .* not 0"):
        certify(subject, per_class=0)
    with pytest.raises(ConfigError, match="sample of 5 and 6 draws"):
        certify(subject, sample=5, per_class=6)
    with pytest.raises(ConfigError, match="modular cannot"):
        domain_of(Modular(p=7), per_class=6)
    with pytest.raises(UnknownNameError, match="chain, pattern"):
        certify(subject, by="weekday", per_class=6)
    with pytest.raises(UnknownNameError, match="chain, pattern"):
        TEN.class_sizes("weekday")


# ---------------------------------------------------------------------- bounds


def test_clopper_pearson_bounds_invert_the_binomial() -> None:
    n = np.array([50, 50, 50, 0])
    wrong = np.array([0, 7, 50, 0])
    low, high = clopper_pearson(wrong, n)
    assert low[0] == 0 and high[2] == 1 and (low[3], high[3]) == (0, 1)  # noqa: PT018
    assert binom.cdf(7, 50, high[1]) == pytest.approx(0.025)
    assert binom.sf(6, 50, low[1]) == pytest.approx(0.025)
    assert high[0] == pytest.approx(1 - 0.025 ** (1 / 50))


def test_without_errors_the_bound_is_that_of_the_largest_class() -> None:
    sizes, n = TEN.class_sizes("chain"), 10_000
    low, high = stratified_interval(sizes, [n] * 11, [0] * 11)
    assert high == 1
    assert 1 - low == pytest.approx(np.log(80) * max(sizes) / 10**20 / n, rel=1e-3)
    assert 1 - low > max(sizes) / 10**20 * 3 / n  # the same draws in that class alone, one-sided


RATES = {
    "none": [0.0, 0.0, 0.0, 0.0],
    "largest class only": [0.05, 0.0, 0.0, 0.0],
    "rare class only": [0.0, 0.0, 0.0, 0.9],
    "all alike": [0.03, 0.03, 0.03, 0.03],
    "often wrong": [0.5, 0.7, 0.2, 1.0],
}


@pytest.mark.parametrize("rates", RATES.values(), ids=RATES.keys())
def test_the_interval_holds_the_truth_as_often_as_it_says(rates: list[float]) -> None:
    sizes, checked = [600_000, 300_000, 99_000, 1_000], [80, 80, 40, 200]
    truth = 1 - sum(size * rate for size, rate in zip(sizes, rates, strict=True)) / sum(sizes)
    draw = np.random.default_rng(0)
    held = 0
    for _ in range(400):
        wrong = draw.binomial(checked, rates).tolist()
        low, high = stratified_interval(sizes, checked, wrong)
        assert low <= stratified_accuracy(sizes, checked, wrong) <= high
        held += low <= truth <= high
    assert held >= binom.ppf(0.001, 400, 0.95)


def test_many_classes_with_few_draws_have_a_bound_that_says_something() -> None:
    sizes = TEN.class_sizes("pattern")
    low, _ = stratified_interval(sizes, [2] * len(sizes), [0] * len(sizes))
    assert 1 - low == pytest.approx(np.log(80) / 2 * max(sizes) / 10**20, rel=0.01)


# ---------------------------------------------------------------------- what is shown


def test_the_command_takes_draws_a_class_and_shows_intervals(run, runs_dir, tmp_path) -> None:
    settings = {"steps": 2, "batch": 8, "data.n_test": 8, "n_digits": 5}
    ag.train("add3", name="five", settings=settings, progress=False)
    code, out, _ = run("certify", "run:five", "--per-class", "25", "--json")
    facts = json.loads(out)
    assert (code, facts["domain"]["method"], facts["domain"]["checked"]) == (1, "stratified", 156)
    code, out, _ = run("certify", "run:five", "--per-class", "25", "--quiet")
    assert "draws from every class of the 10,000,000,000 inputs" in out
    assert "450,000" in out and "95 % interval: low" in out  # noqa: PT018
    assert run("certify", "run:five", "--per-class", "0")[0] == 2
    code, out, _ = run("certify", "run:five", "--per-class", "1", "--by", "pattern", "--quiet")
    assert "244 classes, at least 1 inputs of each; 244 with wrong answers" in out


def test_few_classes_show_sizes_only_where_not_all_is_checked(capsys: pytest.CaptureFixture) -> None:
    show_verdict(certify(Flawed(Addition(n_digits=1), bad=set())))
    assert "95 % interval" not in capsys.readouterr().out


def test_the_page_shows_sizes_and_intervals() -> None:
    subject = Flawed(FIVE, bad={5})
    page = render(subject, {"verdict": certify(subject, per_class=100)})
    table = page[page.index("<h2>Verdict") :]
    for expected in ("95 % interval: low", "450,000", "96.3783%", "3.6217%", "each class is weighted"):
        assert expected in table, expected


def test_the_panel_of_many_classes_has_the_worst() -> None:
    panel = certify(Flawed(FIVE, bad={242}, by="pattern"), by="pattern", per_class=2).panels[0]
    assert len(panel.values) == 100
    assert panel.values[0] == 0 < panel.values[2]
    assert "lowest" in panel.title
