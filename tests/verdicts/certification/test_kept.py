"""Verdicts that run folders keep: the stronger one stays, and is used again by whoever needs one."""

from pathlib import Path

import pytest

import algoscope as ag
from algoscope.verdicts.certification.kept import keep_verdict, kept_or_certified
from algoscope.verdicts.studies.certified import CertifiedAnswers
from algoscope.verdicts.studies.plans import design
from conftest import SMALL


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for seed in (0, 1):
        settings = SMALL | {"steps": 8}
        ag.train("add3", name=f"short-s{seed}", seed=seed, settings=settings, runs_dir=tmp_path, progress=False)
    return tmp_path


@pytest.fixture
def short(folder: Path) -> ag.Run:
    """A whole run of one-digit sums, of which there are 100."""
    return ag.Run(folder / "short-s0")


def kept(run: ag.Run) -> tuple[str, int]:
    domain = run.finding("certify", run.summary.weights_sha256)["domain"]
    return domain["method"], domain["checked"]


def test_few_draws_a_class_do_not_replace_a_count_over_every_input(short: ag.Run, folder: Path, run) -> None:
    run("certify", "run:short-s0", "--runs-dir", folder, "--quiet")
    assert kept(short) == ("exhaustive", 100)
    code, _, err = run("certify", "run:short-s0", "--per-class", 2, "--runs-dir", folder)
    assert code == 1
    assert "not saved: the run folder holds a stronger verdict" in err
    assert kept(short) == ("exhaustive", 100)


def test_a_stronger_verdict_replaces_a_weaker_one_and_other_classes_of_as_many_inputs(short: ag.Run) -> None:
    subject = ag.open(short)
    order = [{"sample": 50}, {"sample": 90}, {"per_class": 2}, {"per_class": 3}, {}, {"by": "pattern"}]
    for weaker, options in zip([None, *order], order, strict=False):
        verdict = ag.certify(subject, **options)
        assert keep_verdict(subject, verdict)
        assert kept(short)[1] == verdict["domain"]["checked"]
        if weaker is not None and options != {"by": "pattern"}:
            assert not keep_verdict(subject, ag.certify(subject, **weaker))
    assert not keep_verdict(subject, ag.certify(subject, by="chain", per_class=5))
    assert not keep_verdict(ag.open("planted:reversal"), verdict), "it has no run folder"


def test_a_kept_verdict_is_taken_where_it_is_as_strong_as_a_new_one(
    short: ag.Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    subject = ag.open(short)
    subject.origin.keep(ag.certify(subject, per_class=2))
    assert kept_or_certified(short)["domain"]["method"] == "exhaustive"
    assert kept(short) == ("exhaustive", 100)
    by_pattern = kept_or_certified(short, by="pattern")
    assert [row["class"] for row in by_pattern["by_class"]] == ["s", "9", "c"]
    monkeypatch.setattr("algoscope.verdicts.certification.kept.certify", lambda *_, **__: pytest.fail("certified"))
    assert kept_or_certified(short).facts == kept_or_certified(short, by="pattern").facts == by_pattern.facts
    with pytest.raises(BaseException, match="certified"):
        kept_or_certified(short, by="chain")


def test_a_verdict_about_another_task_is_not_that_of_these_weights(tmp_path: Path) -> None:
    """Modular sums and differences have the same tokens, classes and number of inputs."""
    settings = {"task.p": 5, "d_model": 8, "model.n_heads": 1, "steps": 2, "data.n_train": 10, "batch": 5}
    run = ag.train("grok59", name="run", settings=settings | {"data.n_test": 5}, runs_dir=tmp_path, progress=False)
    config = run.path / "config.json"
    sums = kept_or_certified(run)
    assert kept_or_certified(run).to_json() == sums.to_json()
    changed = ag.override(run.config, {"task.operation": "-"})
    config.write_text(changed.model_dump_json())
    differences = kept_or_certified(run)
    assert differences.provenance["task"]["operation"] == "-"
    assert differences.to_json() != sums.to_json()


def test_the_census_does_not_trust_a_small_verdict(folder: Path) -> None:
    runs = [ag.Run(folder / f"short-s{seed}") for seed in (0, 1)]
    runs[0].keep(ag.certify(runs[0], per_class=2))
    assert [row["checked"] for row in ag.census(runs, n_inputs=8)["runs"]] == [100, 100]
    assert [row["checked"] for row in ag.census(runs, n_inputs=8, sample=20)["runs"]] == [20, 20]
    assert kept(runs[0]) == ("exhaustive", 100)


def test_a_study_of_a_large_domain_uses_its_verdicts_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("algoscope.verdicts.certification.domain.DRAWS_OF_LARGE", 60)
    settings = SMALL | {"n_digits": 5, "steps": 2}
    five = ag.train("add3", name="five", settings=settings, runs_dir=tmp_path, progress=False)
    measuring = CertifiedAnswers(design())
    before = measuring.measure(five)
    assert kept(five) == ("stratified", 66), "ten draws of each of six classes, and the edge cases"
    monkeypatch.setattr("algoscope.verdicts.certification.kept.certify", lambda *_, **__: pytest.fail("certified"))
    assert measuring.measure(five) == before
    assert "edge" in before.by_class
