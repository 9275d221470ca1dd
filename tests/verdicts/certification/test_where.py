"""Where a model fails, in words: the share of the domain, the classes by name, and nothing that was not tested."""

import json

import numpy as np
import pytest
import torch
from scipy.stats import binom, hypergeom

import algoscope as ag
from algoscope.config import ModelConfig
from algoscope.core.finding import Finding
from algoscope.core.intervals import clopper_pearson, stratified_bounds, stratified_wrong
from algoscope.core.numbers import how_many, percent
from algoscope.doors.cli.model_commands import show_verdict
from algoscope.networks.build import build
from algoscope.subjects.subject import Subject
from algoscope.tasks.base import Task
from algoscope.verdicts.certification._where import where_it_fails
from algoscope.verdicts.certification.certify import certify

THREE, FIVE, TEN = (ag.Addition(n_digits=n) for n in (3, 5, 10))
TINY = {"d_model": 2, "n_heads": 1, "d_mlp": 2}


class Errs(Subject):
    """Right by ten logits, but for the inputs that `errs` picks: there the first token of the answer is another one."""

    def __init__(self, task: Task, errs) -> None:
        super().__init__("errs", build(ModelConfig(d_vocab=task.d_vocab, n_ctx=task.n_ctx, **TINY), 0), task)
        self.errs = errs

    def answers(self, prompts: torch.Tensor) -> torch.Tensor:
        whole = self.task.completed(prompts[:, : self.task.prompt_length])
        answer = whole[:, self.task.prompt_length :].clone()
        wrong = self.errs(whole)
        answer[wrong, 0] = (answer[wrong, 0] + 1) % 2
        return answer

    def answer_logits(self, tokens: torch.Tensor) -> torch.Tensor:
        return 10.0 * torch.nn.functional.one_hot(self.answers(tokens), self.task.d_vocab).float()

    def generate_tokens(self, prompts: torch.Tensor, n_new: int, *, use_cache: bool = True) -> torch.Tensor:
        return self.answers(prompts)[:, :n_new]

    def to_dtype(self, dtype: torch.dtype) -> "Errs":
        return self


def in_classes(task: Task, by: str, *kinds: int) -> Errs:
    return Errs(task, lambda tokens: torch.isin(task.class_of(tokens, by), torch.tensor(kinds)))


def at_random(task: Task, share: float) -> Errs:
    """Wrong on a share of inputs that has nothing to do with their classes: by a hash of the tokens."""
    odd = torch.tensor([pow(2_654_435_761, pos + 1, 2**31 - 1) for pos in range(task.n_ctx)])
    return Errs(task, lambda tokens: ((tokens * odd).sum(dim=1) * 48_271 % (2**31 - 1)) < share * (2**31 - 1))


def rows_of(task: Task, by: str, checked, wrong, *, sampled: bool) -> list[dict]:
    """Rows of `by_class` for these counts."""
    counts = zip(task.class_names(by).items(), checked, wrong, strict=True)
    interval = [0.0, 1.0] if sampled else None
    return [
        {"class": name, "meaning": meaning, "size": n, "checked": n, "wrong": int(k), "interval_95": interval}
        for (name, meaning), n, k in counts
    ]


# ---------------------------------------------------------------------- the share of the domain


def test_a_stratified_verdict_says_the_share_of_the_domain_and_where() -> None:
    """Carries stop at the second column of nine: 1.35 % of all sums, half of the classes."""
    verdict = certify(in_classes(FIVE, "chain", 3, 4, 5), per_class=1_000)
    sizes = FIVE.class_sizes("chain")
    share = verdict["wrong_share"]
    assert share["share"] == float(stratified_wrong(sizes, [1_000] * 6, [0, 0, 0, 1_000, 1_000, 1_000]))
    assert share["share"] == pytest.approx(sum(sizes[3:]) / 10**10)
    assert share["interval_95"] == list(stratified_bounds(sizes, [1_000] * 6, [0, 0, 0, 1_000, 1_000, 1_000]))
    low, high = share["interval_95"]
    bound = percent(float(clopper_pearson(np.array([0]), np.array([1_000]))[1][0]))
    assert str(verdict) == (
        f"wrong on 1.35 % of the domain (95 % interval: {percent(low)} to {percent(high)}; draws from every class of "
        "the 10,000,000,000 inputs): fails where a carry runs through two or more columns of nine "
        "(all 3,000 drawn wrong); "
        f"no error in 1,000 inputs of each other class (95 % upper bound {bound}); 1 of the task's 6 edge cases wrong"
    )
    (found,), others = verdict["where"]["sets"], verdict["where"]["others"]
    assert (found["classes"], found["wrong"], found["checked"]) == (["S3", "S4", "S5"], 3_000, 3_000)
    assert (others["classes"], others["wrong"]) == (["S0", "S1", "S2"], 0)
    assert percent(others["upper_bound"]) == bound == "0.368 %"
    assert [row["weight"] for row in verdict["by_class"][:-1]] == [size / 10**10 for size in sizes]
    assert verdict["by_class"][-1]["weight"] is None


def test_the_command_says_the_same(capsys: pytest.CaptureFixture) -> None:
    verdict = certify(in_classes(FIVE, "chain", 4, 5), per_class=50)
    show_verdict(verdict)
    out = capsys.readouterr().out
    assert out.startswith(str(verdict))
    assert "wrong of" not in out.splitlines()[0]
    show_verdict(certify(in_classes(ag.Addition(n_digits=2), "chain", 2)))
    assert capsys.readouterr().out.splitlines()[:2] == [
        "450 wrong of 10,000 (all inputs), accuracy 95.500000%",
        "fails where a carry runs through one column of nine (all 450 wrong); no error in the 9,550 other inputs",
    ]


def test_a_model_that_is_right_keeps_its_sentence() -> None:
    assert str(certify(in_classes(FIVE, "chain"), per_class=5)) == (
        "0 wrong of 36 inputs (draws from every class of the 10,000,000,000 there are)"
    )
    whole = certify(in_classes(ag.Addition(n_digits=2), "chain"))
    assert str(whole) == "0 wrong of 10,000 inputs (all of the 10,000 there are)"
    assert whole["where"] == {"words": "", "sets": [], "others": whole["where"]["others"]}
    assert whole["wrong_share"] == {"share": 0, "interval_95": None}


def test_an_error_among_the_edge_cases_alone_is_not_called_a_share() -> None:
    verdict = certify(
        Errs(TEN, lambda tokens: (tokens[:, :21] == torch.tensor([*[0] * 10, 10, *[0] * 10])).all(1)), per_class=20
    )
    assert "no error in the draws, but 1 of the task's 6 edge cases wrong" in str(verdict)


@pytest.mark.parametrize("rates", [(0.02,) * 4, (0, 0, 0, 1), (0.001, 0, 0.3, 1)], ids=str)
def test_bounds_on_the_share_hold_as_often_as_they_say(rates: tuple[float, ...]) -> None:
    sizes, checked = list(THREE.class_sizes("chain")), [300, 300, 300, 300]
    truth = sum(size * rate for size, rate in zip(sizes, rates, strict=True)) / 10**6
    draw, held = np.random.default_rng(5), 0
    for _ in range(300):
        wrong = draw.binomial(checked, rates).tolist()
        low, high = stratified_bounds(sizes, checked, wrong)
        assert low <= float(stratified_wrong(sizes, checked, wrong)) <= high
        held += low <= truth <= high
    assert held >= binom.ppf(0.001, 300, 0.95)


def test_a_tiny_share_is_not_lost() -> None:
    task = ag.Addition(n_digits=18)
    verdict = certify(in_classes(task, "chain", 18), per_class=10)
    assert verdict["wrong_share"]["share"] == task.class_sizes("chain")[-1] / 10**36 < 1e-15
    assert "e-16 % of the domain" in str(verdict)


# ---------------------------------------------------------------------- where


@pytest.mark.parametrize(
    ("task", "by", "kinds", "words"),
    [
        (THREE, "chain", (2, 3), "a carry runs through one or more columns of nine"),
        (THREE, "chain", (3,), "a carry runs through two columns of nine"),
        (THREE, "chain", (1, 2, 3), "any column carries"),
        (THREE, "chain", (0, 2), "no column carries or where the longest carry runs through one column of nine"),
        (THREE, "pattern", (5, 14, 15, 16, 17, 23), "a carry runs through one or more columns of nine"),
        (THREE, "pattern", tuple(range(18, 27)), "the hundreds column sums to ten or more"),
        (ag.Subtraction(n_digits=2), "chain", (2,), "a borrow runs through one column of equal digits"),
        (ag.Subtraction(n_digits=3), "chain", (2, 3), "a borrow runs through one or more columns of equal digits"),
        (ag.Modular(p=23), "wrap", (1,), "a + b is reduced modulo 23"),
        (ag.Modular(p=23, operation="-"), "order", (0, 1), "a <= b"),
        (ag.Group(group="S4"), "commutes", (0,), "a * b is not b * a"),
        (ag.Group(group="D5"), "order", (0, 2), "a and b differ"),
        (ag.Reversal(length=4), "distinct", (0, 1), "the input has at most two different letters"),
        (ag.Reversal(length=4), "palindrome", (1,), "the input reads the same backwards"),
        (ag.Copying(n_symbols=4, length=12), "period", (3, 4), "the sequence repeats four or more letters"),
        (ag.Copying(n_symbols=4, length=12), "context", (1,), "one letter determines the next"),
    ],
    ids=lambda value: value.kind if isinstance(value, Task) else None,
)
def test_a_model_that_fails_in_some_classes_is_said_to_fail_there(task: Task, by: str, kinds, words: str) -> None:
    verdict = certify(in_classes(task, by, *kinds), by=by)
    sizes = {row["class"]: row["checked"] for row in verdict["by_class"]}
    bad = [list(sizes)[kind] for kind in kinds]
    n = sum(sizes[name] for name in bad)
    rest = task.domain_size - n
    assert verdict["wrong"] == n
    assert str(verdict).endswith(f": fails where {words} (all {n:,} wrong); no error in the {rest:,} other inputs")
    (found,) = verdict["where"]["sets"]
    assert set(found["classes"]) == {name for name in bad if sizes[name]}
    assert verdict["where"]["others"]["upper_bound"] is None


def test_uniform_draws_say_what_they_bound() -> None:
    verdict = certify(in_classes(THREE, "chain", 2, 3), sample=4_000)
    wrong = verdict["wrong"]
    bound = clopper_pearson(np.array([0]), np.array([4_000 - wrong]))[1][0]
    assert (
        f"fails where a carry runs through one or more columns of nine (all {wrong} drawn wrong); no error in the "
        in (str(verdict))
    )
    assert f"{4_000 - wrong:,} draws of other inputs (95 % upper bound {percent(float(bound))})" in str(verdict)
    assert f", {percent(wrong / 4_000)} (95 % interval: " in str(verdict)


def test_classes_that_no_draw_met_are_not_spoken_for() -> None:
    rows = rows_of(TEN, "chain", [50, 700, 200, 40, 10, 0, 0, 0, 0, 0, 0], [0, 0, 0, 40, 10] + [0] * 6, sampled=True)
    for row in rows:
        row["size"] = None
    where = where_it_fails(TEN, "chain", rows, "sampled")
    assert "fails where the longest carry runs through two to three columns of nine" in where["words"]
    assert "or more" not in where["words"]
    assert where["words"].endswith("6 of the 11 classes were not drawn")


def test_wrong_everywhere_is_said_so() -> None:
    assert str(certify("planted:reversal-wrong")).endswith("fails in every class (all 32,768 wrong)")
    assert "fails in every class (all 300 drawn wrong)" in str(
        certify(in_classes(FIVE, "chain", *range(6)), per_class=50)
    )


@pytest.mark.parametrize("options", [{}, {"sample": 20_000}, {"per_class": 2_000}], ids=str)
def test_errors_at_random_are_spread_over_the_classes(options: dict) -> None:
    verdict = certify(at_random(THREE, 0.02), **options)
    assert verdict["where"]["sets"] == []
    assert "errors are spread over all classes: none is significantly worse" in str(verdict)
    low, high = verdict["where"]["others"]["lowest"], verdict["where"]["others"]["highest"]
    assert 0 < low < 0.02 < high < 0.1
    assert f"{percent(low)} to {percent(high)} of " in str(verdict)


def test_errors_by_chance_are_rarely_given_a_place() -> None:
    draw, claimed = np.random.default_rng(1), 0
    for sizes, by in ((THREE.class_sizes("chain"), "chain"), (THREE.class_sizes("pattern"), "pattern")):
        for n_wrong in (1, 3, 500):
            for _ in range(50):
                wrong = draw.multivariate_hypergeometric(sizes, n_wrong)
                claimed += bool(
                    where_it_fails(THREE, by, rows_of(THREE, by, sizes, wrong, sampled=False), "exhaustive")["sets"]
                )
    assert claimed <= binom.ppf(0.999, 300, 0.01)


def test_few_errors_in_a_rare_class_are_found() -> None:
    """Three errors, all in the 4,500 sums of the longest chains: by chance in one of ten million models."""
    sizes = THREE.class_sizes("chain")
    where = where_it_fails(THREE, "chain", rows_of(THREE, "chain", sizes, [0, 0, 0, 3], sampled=False), "exhaustive")
    assert where["words"] == (
        "errs where a carry runs through two columns of nine (0.0667 %: 3 of 4,500); "
        "no error in the 995,500 other inputs"
    )
    assert hypergeom.sf(2, 10**6, 4_500, 3) < 1e-6


def test_shares_that_grow_are_said_in_steps() -> None:
    wrong = [0, 0, 150, 3_000, 9_500, 10_000]
    rows = rows_of(FIVE, "chain", [10_000] * 6, wrong, sampled=True)
    assert where_it_fails(FIVE, "chain", rows, "stratified")["words"] == (
        "fails where a carry runs through three or more columns of nine (95 % to 100 % of the draws from each class), "
        "errs where the longest carry runs through two columns of nine (30 %: 3,000 of 10,000 drawn), "
        "errs where the longest carry runs through one column of nine (1.5 %: 150 of 10,000 drawn); "
        "no error in 10,000 inputs of each other class (95 % upper bound 0.0369 %)"
    )


def test_what_no_words_fit_is_counted() -> None:
    kinds = (1, 5, 6, 11, 13, 20, 22)
    words = certify(in_classes(THREE, "pattern", *kinds), by="pattern")["where"]["words"]
    assert words.startswith("fails in 7 of the 27 classes, as where columns sum to")


def test_words_of_a_verdict_survive_json() -> None:
    verdict = certify(in_classes(FIVE, "chain", 5), per_class=30)
    assert Finding.from_json(verdict.to_json()).facts == json.loads(json.dumps(verdict.facts))


# ---------------------------------------------------------------------- draws, counterexamples, numbers


def test_a_sample_of_a_task_that_draws_unevenly_is_uniform() -> None:
    """Half of the draws of this task repeat 1 letter, but only 4 of its 260 inputs do."""
    task = ag.Copying(n_symbols=4, length=8, shortest=1, longest=4)
    verdict = certify(in_classes(task, "period", 0), by="period", sample=3_000)
    share = 4 / task.domain_size
    assert binom.ppf(1e-4, 3_000, share) <= verdict["wrong"] <= binom.ppf(1 - 1e-4, 3_000, share)


def test_counterexamples_come_from_every_class_that_has_some() -> None:
    verdict = certify(in_classes(THREE, "chain", 0, 1, 2, 3), limit_counterexamples=8)
    kinds = THREE.class_of(
        THREE.completed(torch.tensor([THREE.encode(c["input"]) for c in verdict["counterexamples"]])), "chain"
    )
    assert kinds.tolist() == [0, 1, 2, 3, 0, 1, 2, 3]
    rare = certify(in_classes(THREE, "chain", 1, 3), limit_counterexamples=5)["counterexamples"]
    assert [THREE.expected(c["input"]) for c in rare] == [c["expected"] for c in rare]
    assert len({c["input"] for c in rare}) == 5
    many = certify(in_classes(THREE, "pattern", *range(27)), by="pattern", limit_counterexamples=20)["counterexamples"]
    texts = THREE.completed(torch.tensor([THREE.encode(c["input"]) for c in many]))
    assert len(set(THREE.class_of(texts, "pattern").tolist())) == 20


def test_numbers_are_written_as_they_are() -> None:
    shares = (0.0, 1.0, 0.0204, 0.025, 0.9999987, 3.69e-4, 1e-18, 0.5)
    assert [percent(share) for share in shares] == [
        "0 %", "100 %", "2.04 %", "2.5 %", "99.99987 %", "0.0369 %", "1.00e-16 %", "50 %"
    ]  # fmt: skip
    assert [how_many(*span, 1, 4) for span in ((1, 1), (1, 2), (2, 3), (2, 4), (4, 4))] == [
        "one", "at most two", "two to three", "two or more", "four"
    ]  # fmt: skip
