"""Studies: members are ordinary runs, statements are judged by the rule that they state."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from playwright.sync_api import Browser

import algoscope as ag
from algoscope.config import RunConfig, override
from algoscope.core.errors import ConfigError, RunFolderError, UnknownNameError
from algoscope.core.registry import Entry, Table
from algoscope.recipes.table import RECIPES
from algoscope.verdicts.studies import certified, study
from algoscope.verdicts.studies.certified import REACHED, CertifiedAnswers, StepsToGeneralise, short_count, short_share
from algoscope.verdicts.studies.plans import Study, Variant
from algoscope.verdicts.studies.predictions import Accuracy, Alike, Arrives, Loss, Measured, Worse, Wrong, compare
from algoscope.verdicts.studies.table import STUDIES
from conftest import SMALL

N = None
FROZEN = {"lr": 1e-9, "optim.muon_lr": 1e-9}
TINY = {name: value for name, value in SMALL.items() if name not in ("steps", "train.eval_every")}


def small_study() -> Study:
    """Steps until it arrives; `answers_study` asks the same members what they get wrong."""
    return Study(
        name="small",
        question="Does it learn faster?",
        recipe="add3",
        common={"steps": 30, "train.eval_every": 10},
        variants=(
            Variant("control", "as it is"),
            Variant("frozen", "hardly moves", FROZEN, (Arrives("never"),)),
            Variant("same", "nothing is changed", {}, (Arrives("sooner"),)),
            Variant("no-mask", "sees the answer", {"model.causal": False, "steps": 80}),
        ),
    )


def answers_study() -> Study:
    plan = small_study()  # its name too, and so its members
    expected = {
        "frozen": (Accuracy(below=0.05), Loss(below=0.1)),
        "same": (Alike(),),
        "no-mask": (Accuracy(below=0.1),),
    }
    variants = tuple(replace(variant, expected=expected.get(variant.name, ())) for variant in plan.variants)
    return replace(plan, variants=variants, measures="answers")


def compared(plan: Study, folder: Path, **settings: object) -> ag.Finding:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(certified, "REACHED", 0.02)  # thirty steps learn little
        return ag.study(plan, seeds=[0, 1], settings=TINY | settings, runs_dir=folder, progress=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("studies")


@pytest.fixture(scope="module")
def found(folder: Path) -> ag.Finding:
    return compared(small_study(), folder)


@pytest.fixture(scope="module")
def answers(found: ag.Finding, folder: Path) -> ag.Finding:
    return compared(answers_study(), folder)


# ---------------------------------------------------------------------- members and their table


def test_a_study_trains_every_variant_with_every_seed(found: ag.Finding, folder: Path) -> None:
    names = {run.name for run in ag.Run.all(folder)}
    variants = ("control", "frozen", "same", "no-mask")
    assert names == {f"small-{variant}-s{seed}" for variant in variants for seed in (0, 1)}
    control, frozen, same, _ = found["rows"]
    assert control["generalised"] == same["generalised"]
    assert N not in control["generalised"]
    assert frozen["generalised"] == [N, N]
    assert (frozen["median"], frozen["outcome"], frozen["expected"], frozen["came_true"]) == (N, "never", "never", True)
    assert frozen["predictions"] == [{"says": "never", "by_seed": [True, True], "came_true": True}]
    assert (same["outcome"], same["came_true"]) == ("no clear difference", False)
    assert (control["expected"], control["came_true"]) == (N, N)
    assert "the predictions for 1 of 2 variants came true" in found.claim
    panel = found.panels[0]
    assert panel.name == "generalised"
    assert np.isnan(panel.values[1]).all()
    assert panel.values[0].tolist() == control["generalised"]
    assert ag.Finding.from_json(found.to_json()).facts == json.loads(json.dumps(found.facts))


def test_what_goes_wrong_is_counted_over_every_input(answers: ag.Finding, folder: Path) -> None:
    control, frozen, same, no_mask = answers["rows"]
    task = ag.Addition(n_digits=1)
    tokens = task.at(torch.arange(100))
    for seed in (0, 1):
        subject = ag.open(f"run:small-control-s{seed}", runs_dir=str(folder))
        decoded = subject.generate_tokens(tokens[:, : task.prompt_length], 3)
        wrong = (decoded != tokens[:, task.prompt_length :]).any(dim=1)
        assert control["wrong"][seed] == int(wrong.sum())
        assert control["accuracy"][seed] == pytest.approx(1 - int(wrong.sum()) / 100)
        in_class = task.class_of(tokens, "chain") == 1
        assert control["by_class"]["S1"][seed] == pytest.approx(float(wrong[in_class].float().mean()))
    assert control["checked"] == 100
    assert list(control["by_column"]) == ["units", "tens", "end"]
    assert [said["came_true"] for said in frozen["predictions"]] == [True, False]
    assert frozen["came_true"] is False
    assert same["came_true"] is True
    assert same["by_class"] == control["by_class"]
    assert no_mask["came_true"], "it copies the answer that it is shown, and has none when it decodes"
    assert max(no_mask["loss"]) < min(control["loss"])
    assert "Median wrong of 100:" in answers.claim
    drawn = [row | {"drawn_share": [0.02] * len(row["wrong"])} for row in answers["rows"]]
    told = CertifiedAnswers(answers_study()).claim({"rows": drawn})
    assert told.startswith("Median share of the domain that is wrong: control 2 %, frozen 2 %")
    assert "the predictions for 2 of 3 variants came true" in answers.claim
    assert [panel.name for panel in answers.panels] == ["class", "column", "seed"]
    assert answers["class"].axes[0].labels == ("control", "frozen", "same", "no-mask")
    assert answers["class"].values[0, 1] == pytest.approx(np.median(control["by_class"]["S1"]))


def test_nothing_is_trained_or_certified_again(
    found: ag.Finding, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = {path: path.stat().st_mtime_ns for path in folder.glob("small-*/**/*.json")}
    assert sum(path.name == "certify.json" for path in written) == 8
    monkeypatch.setattr(
        "algoscope.verdicts.certification.kept.certify", lambda *_, **__: pytest.fail("certified again")
    )
    again = compared(small_study(), folder)
    assert again.facts == found.facts
    assert {path: path.stat().st_mtime_ns for path in folder.glob("small-*/**/*.json")} == written


def test_a_verdict_by_another_scheme_is_not_taken(found: ag.Finding, folder: Path) -> None:
    run = ag.Run(folder / "small-control-s0")
    measuring = StepsToGeneralise(small_study())
    before = measuring.measure(run)
    run.keep(ag.certify(run, by="pattern"))
    assert measuring.measure(run) == before


def test_a_folder_with_another_config_is_refused(found: ag.Finding, folder: Path) -> None:
    with pytest.raises(RunFolderError, match=r"small-control-s0 has another config: train.batch is 32, not 16"):
        compared(small_study(), folder, batch=16)


def test_a_member_that_diverges_is_named_and_the_rest_go_on(
    found: ag.Finding, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def some_diverge(configs: Mapping[str, RunConfig], **options: object) -> ag.Population:
        broken = {"small-frozen-s1", "small-same-s0", "small-same-s1"}
        trained = ag.train_many({name: c for name, c in configs.items() if name not in broken}, **options)
        return ag.Population(trained.runs, {name: f"the loss of {name} is nan" for name in broken})

    monkeypatch.setattr(study, "train_many", some_diverge)
    for measures in ("steps", "answers"):
        broken = compared(replace(small_study(), measures=measures), folder)
        _, frozen, same, _ = broken["rows"]
        assert frozen["diverged"] == {"1": "the loss of small-frozen-s1 is nan"}
        assert (frozen["wrong"][1], frozen["by_class"]["S0"][1], frozen["generalised"]) == (N, N, [N, N])
        assert frozen["predictions"][0]["by_seed"] == [True, N]
        assert frozen["came_true"] is True, "by the seed that is left"
        assert same["came_true"] is False, "of no members nothing holds"
        assert same["by_class"] == {}
        assert json.loads(broken.to_json())["rows"][2]["accuracy"] == [N, N]
        assert ("same", "0", "the loss of small-same-s0 is nan") in broken.tables[-1].rows
        assert broken.plot() is not None


# ---------------------------------------------------------------------- what is shown


@pytest.fixture
def named(found: ag.Finding, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = {"small": Entry("test_studies:small_study", ""), "right": Entry("test_studies:answers_study", "")}
    monkeypatch.setattr(study, "STUDIES", Table("study", rows))


def command(run, name: str, folder: Path, *more: object) -> str:
    settings = [word for field, value in TINY.items() for word in ("--set", f"{field}={value}")]
    code, out, err = run("study", name, "--seeds", "0..1", *settings, "--runs-dir", folder, "--quiet", *more)
    assert (code, err) == (0, "")
    return out


def test_the_command_shows_what_goes_wrong_and_what_came_true(named: None, folder: Path, run) -> None:
    out = command(run, "right", folder)
    tables = [line.split() for line in out.splitlines()]
    assert ["variant", "S0", "S1", "units", "tens", "end"] in tables
    assert ["frozen", "accuracy", "below", "5", "%", "yes", "2", "of", "2"] in tables
    assert ["frozen", "training", "loss", "below", "0.1", "no", "0", "of", "2"] in tables
    assert ["same", "no", "difference", "yes", "2", "of", "2"] in tables
    assert out.rstrip().endswith("the predictions for 2 of 3 variants came true")
    arrivals = [line.split() for line in command(run, "small", folder).splitlines()]
    assert ["never", "never", "yes"] in [words[-3:] for words in arrivals], "outcome, prediction, came true"
    assert ["sooner", "than", "control", "no"] in [words[-4:] for words in arrivals]


def test_the_page_opens_without_a_complaint(named: None, folder: Path, run, tmp_path: Path, chromium: Browser) -> None:
    command(run, "right", folder, "--out", tmp_path / "study.html")
    page, said = chromium.new_page(viewport={"width": 420, "height": 900}), []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.goto((tmp_path / "study.html").as_uri())
    page.wait_for_selector(".plot .main-svg")
    assert said == []
    assert page.locator(".plot").count() == page.locator(".plot .svg-container").count() == 3
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "no sideways scrolling on a telephone"
    assert "training loss below 0.1" in page.inner_text("body")
    page.close()


def test_a_page_about_steps_has_its_table(named: None, folder: Path, run, tmp_path: Path) -> None:
    command(run, "small", folder, "--out", tmp_path / "study.html")
    page = (tmp_path / "study.html").read_text()
    assert "<td>hardly moves</td><td>" in page
    assert "Steps until 99 % of the test answers are right." in page


# ---------------------------------------------------------------------- statements


def member(accuracy: float = 1.0, loss: float = 0.0, classes: str = "", columns: str = "", at: int | None = 0):
    """A made-up member: `S0 .1 S1 .2` are shares wrong."""
    by = [dict(zip(text.split()[::2], map(float, text.split()[1::2]), strict=True)) for text in (classes, columns)]
    return Measured(0, at, loss, 1000, round((1 - accuracy) * 1000), accuracy, *by)


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
def test_the_rule_of_arrivals(arrived: list, control: list, outcome: str) -> None:
    assert compare(arrived, control) == outcome
    members = [member(at=step) for step in arrived]
    assert Arrives(outcome).holds(members, [member(at=step) for step in control])


def test_bounds_are_put_to_medians() -> None:
    members = [member(0.2, 0.01), member(0.4, 5.0), member(0.9, 0.02)]
    assert Accuracy(below=0.41).holds(members, [])
    assert not Accuracy(below=0.4).holds(members, [])
    assert Accuracy(least=0.4).holds(members, [])
    assert not Accuracy(least=0.4).holds(members[:1], [])
    assert Loss(below=0.03).holds(members, [])
    assert not Loss(least=1).holds(members, [])


def test_classes_and_columns_are_compared_each_with_each() -> None:
    members = [member(classes="S0 .1 S1 .2 S2 .9", columns="units 0 tens .5") for _ in range(2)]
    assert Worse("class", ("S1", "S2"), ("S0",)).holds(members, [])
    assert not Worse("class", ("S0", "S2"), ("S1",)).holds(members, [])
    assert not Worse("class", ("S0",), ("S0",)).holds(members, []), "worse is more than as bad"
    assert Worse("column", ("tens",), ("units",)).holds(members, [])
    assert Wrong("class", ("S1", "S2"), least=0.2).holds(members, [])
    assert not Wrong("class", ("S1", "S2"), below=0.5).holds(members, [])
    for nowhere in (
        Worse("class", ("S2",), ("S9",)),
        Worse("class", ("S9",), ("S0",)),
        Wrong("class", ("S9",), below=1),
    ):
        assert not nowhere.holds(members, []), "nothing is said of a class that has no input"


def test_alike_is_inside_the_spread_of_the_control() -> None:
    control = [member(0.90), member(0.94), member(0.95)]
    assert Alike().holds([member(0.979)], control), "0.04 from the median, as one seed of the control is"
    assert not Alike().holds([member(0.99)], control)
    assert Alike().holds([member(0.901), member(0.91), member(0.5)], control)
    same = [member(1.0)] * 3
    assert not Alike().holds([member(0.9995)], same)
    assert Alike(within=0.001).holds([member(0.9995)], same)


def test_of_no_members_nothing_holds() -> None:
    control = [member()]
    for statement in (
        Arrives("never"), Accuracy(below=2), Loss(below=9), Alike(within=1), Wrong("class", (), below=1),
        Worse("class", (), ()),
    ):  # fmt: skip
        assert not statement.holds([], control)


def test_statements_read_as_sentences() -> None:
    assert Accuracy(below=0.05).says == "accuracy below 5 %"
    assert Accuracy(least=0.999).says == "accuracy at least 99.9 %"
    assert Wrong("class", ("S0",), least=0.5).says == "S0: at least 50 % wrong"
    assert Worse("class", ("S2", "S3"), ("S0",)).says == "S2, S3 worse than S0"
    assert Alike(within=1e-4).says == "no difference above 0.01 % of the inputs"
    assert Alike().says == "no difference"
    assert Loss(below=0.01).says == "training loss below 0.01"


@pytest.mark.parametrize(
    ("share", "word"),
    [(0, "0"), (1e-6, "<.01%"), (0.0003, "0.03%"), (0.031, "3.1%"), (0.125, "12%"), (0.9921, "99.2%"),
     (0.999999, ">99.9%"), (1, "100%")],
)  # fmt: skip
def test_shares_are_written_short(share: float, word: str) -> None:
    assert short_share(share) == word


def test_counts_are_written_short() -> None:
    assert [short_count(n) for n in (0, 213, 9999, 12_345, 987_000, 1e6)] == [
        "0", "213", "9,999", "12.3k", "987k", "1.00M"
    ]  # fmt: skip


# ---------------------------------------------------------------------- plans and requests


@pytest.mark.parametrize("name", STUDIES)
def test_every_study_can_be_run(name: str) -> None:
    plan = STUDIES.load(name)()
    names = [variant.name for variant in plan.variants]
    assert plan.name == name
    assert len(set(names)) == len(names)
    configs = []
    for variant in plan.variants:
        assert variant.against in names
        configs.append(override(RECIPES.load(plan.recipe)(), {**plan.common, **variant.settings}))
        known = set(configs[-1].task.class_names(configs[-1].task.class_schemes[0])) | set(
            configs[-1].task.answer_names
        )
        for said in variant.expected:
            named = {*getattr(said, "of", ()), *getattr(said, "than", ())}
            assert named <= known, f"{variant.name} speaks of {named - known}"
    assert all(configs.count(config) == 1 for config in configs)


def test_bad_input_is_one_line(tmp_path: Path, run) -> None:
    with pytest.raises(UnknownNameError, match="unknown study 'groking'"):
        ag.study("groking", runs_dir=tmp_path)
    with pytest.raises(ConfigError, match="at least one seed"):
        ag.study("grokking", seeds=[], runs_dir=tmp_path)
    code, _, err = run("study", "grokking", "--seeds", "3")
    assert (code, err.count("\n")) == (2, 1)
    assert 0.9 < REACHED <= 1
