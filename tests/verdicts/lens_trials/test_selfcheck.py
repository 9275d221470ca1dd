"""The selfcheck: what is planted is found, what is not there is not, and a lens that says yes to all is caught."""

import json
from dataclasses import replace

import pytest

import algoscope as ag
from algoscope.core.errors import ConfigError
from algoscope.lenses.table import LENSES
from algoscope.verdicts.lens_trials import selfcheck as module

NEEDS_A_RUN = {"progress", "induction_phase", "timeline"}  # lenses that compare checkpoints: a planted model has none


@pytest.mark.parametrize("copies", [1, pytest.param(10, marks=pytest.mark.long)])
def test_every_lens_finds_what_is_planted_and_raises_no_alarm(copies: int) -> None:
    finding = ag.selfcheck(copies=copies)
    assert finding["hit_rate"] == 1, [row for row in finding["checks"] if not row["found"]]
    assert finding["false_alarm_rate"] == 0, [row for row in finding["checks"] if sum(row["false_alarms"].values())]
    assert finding["holds"]
    assert {row["lens"] for row in finding["checks"]} == set(LENSES) - NEEDS_A_RUN
    assert all(row["trials"]["shuffled"] == row["trials"]["random"] > 0 for row in finding["checks"])
    panel = finding["rates"]
    assert panel.axes[0].labels == tuple(dict.fromkeys(row["lens"] for row in finding["checks"]))
    assert (panel.values[:, 0] == 1).all()
    assert (panel.values[:, 1:3] == 0).all()
    assert finding.about
    assert panel.caption
    trials, rates = finding.tables
    assert [row[0] for row in trials.rows] == [trial.lens for trial in module.TRIALS]
    assert {row[0]: row[1] for row in rates.rows} == dict.fromkeys(panel.axes[0].labels, 1.0)


@pytest.mark.parametrize("answer", [True, False])
def test_a_lens_that_always_says_the_same_does_not_hold(answer: bool, monkeypatch: pytest.MonkeyPatch, run) -> None:
    check = replace(module.TRIALS[2], question=lambda lens, subject, mechanism: answer)
    monkeypatch.setattr(module, "TRIALS", (check,))
    code, said, _ = run("selfcheck", "--copies", 2, "--json", "--quiet")
    result = json.loads(said)
    assert code == 1
    assert (result["hit_rate"], result["false_alarm_rate"], result["holds"]) == (answer, answer, False)
    assert result["checks"][0]["trials"] == {"shuffled": 2, "random": 2, "decoys": 1}


def test_the_command_prints_a_line_for_each_check(monkeypatch: pytest.MonkeyPatch, run) -> None:
    monkeypatch.setattr(module, "TRIALS", module.TRIALS[:3])
    code, said, _ = run("selfcheck", "--copies", 1, "--quiet")
    assert code == 0
    assert said.count("found") >= 3
    assert "3 of 3 planted mechanisms found, 0 false alarms in 7 trials" in said


def test_no_copies_is_one_line() -> None:
    with pytest.raises(ConfigError, match="copies is 0"):
        ag.selfcheck(copies=0)
