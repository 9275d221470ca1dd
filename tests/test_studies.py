"""Studies: members are ordinary runs, outcomes follow the stated rule."""

import json
from pathlib import Path

import numpy as np
import pytest

import algoscope as ag
from algoscope.config import override
from algoscope.core.errors import ConfigError, UnknownNameError
from algoscope.core.registry import Entry, Table
from algoscope.training import comparing
from algoscope.training.comparing import REACHED, compare
from algoscope.training.studies import Study, Variant
from algoscope.training.table import RECIPES, STUDIES
from conftest import SMALL

N = None


def small_study() -> Study:
    return Study(
        name="small",
        question="Does it learn faster?",
        recipe="add3",
        common={"train.eval_every": 10},
        variants=(
            Variant("control", "as it is"),
            Variant("frozen", "hardly moves", {"lr": 1e-9, "optim.muon_lr": 1e-9}, "never"),
            Variant("same", "nothing is changed", {}, "sooner"),
        ),
    )


@pytest.fixture
def found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ag.Finding:
    monkeypatch.setattr(comparing, "REACHED", 0.02)  # sixty steps learn little
    monkeypatch.setattr(comparing, "STUDIES", Table("study", {"small": Entry("test_studies:small_study", "")}))
    return comparing.study("small", seeds=[0, 1], settings=SMALL, runs_dir=tmp_path, progress=False)


def test_a_study_trains_every_variant_with_every_seed(found: ag.Finding, tmp_path: Path) -> None:
    names = {run.name for run in ag.Run.all(tmp_path)}
    assert names == {f"small-{variant}-s{seed}" for variant in ("control", "frozen", "same") for seed in (0, 1)}
    control, frozen, same = found["rows"]
    assert control["generalised"] == same["generalised"]
    assert N not in control["generalised"]
    assert frozen["generalised"] == [N, N]
    assert (frozen["median"], frozen["outcome"], frozen["came_true"]) == (N, "never", True)
    assert (same["outcome"], same["came_true"]) == ("no clear difference", False)
    assert (control["expected"], control["came_true"]) == (N, N)
    assert "1 of 2 expectations came true" in found.claim
    panel = found.panels[0]
    assert panel.name == "generalised"
    assert np.isnan(panel.values[1]).all()
    assert panel.values[0].tolist() == control["generalised"]
    assert ag.Finding.from_json(found.to_json()).facts == json.loads(json.dumps(found.facts))


def test_whole_members_are_not_trained_again(
    found: ag.Finding, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/run.json")}
    again = comparing.study("small", seeds=[0, 1], settings=SMALL, runs_dir=tmp_path, progress=False)
    assert again.facts == found.facts
    assert {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/run.json")} == written


@pytest.mark.parametrize(
    ("arrived", "control", "outcome"),
    [
        ([100, 200, 900], [300, 400, 500], "sooner"),
        ([100, 350, 400], [300, 400, 500], "no clear difference"),
        ([600, 700, N], [300, 400, 500], "later"),
        ([N, N, 100], [300, 400, 500], "later"),
        ([N, N, N], [N, N, N], "never"),
        ([N, 500, 400], [N, N, N], "sooner"),
        ([N, 600, 400], [300, 400, N], "no clear difference"),
    ],
)
def test_the_rule(arrived: list, control: list, outcome: str) -> None:
    assert compare(arrived, control) == outcome


@pytest.mark.parametrize("name", STUDIES)
def test_every_study_can_be_run(name: str) -> None:
    plan = STUDIES.load(name)()
    names = [variant.name for variant in plan.variants]
    assert plan.name == name
    assert len(set(names)) == len(names)
    for variant in plan.variants:
        assert variant.against in names
        override(RECIPES.load(plan.recipe)(), {**plan.common, **variant.settings})


def test_bad_input_is_one_line(tmp_path: Path, run) -> None:
    with pytest.raises(UnknownNameError, match="unknown study 'groking'"):
        ag.study("groking", runs_dir=tmp_path)
    with pytest.raises(ConfigError, match="at least one seed"):
        ag.study("grokking", seeds=[], runs_dir=tmp_path)
    code, _, err = run("study", "grokking", "--seeds", "3")
    assert (code, err.count("\n")) == (2, 1)
    assert 0.9 < REACHED <= 1
