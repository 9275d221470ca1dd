"""The study of length, scaled down: its members, its counting, what it makes of predictions."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import algoscope as ag
from algoscope.core.errors import ConfigError, TaskMismatchError
from algoscope.data import seeded
from algoscope.recipes.addition import add20
from algoscope.tasks.digits.addition import Addition
from algoscope.verdicts.studies import widths as module
from algoscope.verdicts.studies.plans import length
from algoscope.verdicts.studies.predictions import AtWidth, WidthShares
from algoscope.verdicts.studies.study import MEASURES, _row
from algoscope.verdicts.studies.widths import PARTS, AccuracyByWidth, shares_right

SMALL = {
    "n_digits": 3, "steps": 6, "batch": 8, "d_model": 16, "model.d_mlp": 16, "model.d_head": 4, "data.n_test": 20,
    "train.eval_every": 3,
}  # fmt: skip
WIDTHS = (1, 3, 6)
PLAN = replace(length(), widths=WIDTHS, fresh=30)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("length")


@pytest.fixture(scope="module")
def found(runs: Path) -> ag.Finding:
    return ag.study(PLAN, seeds=[0, 1], settings=SMALL, runs_dir=runs, progress=False)


def test_every_variant_is_trained_with_every_seed(found: ag.Finding, runs: Path) -> None:
    positions = {run.name: run.config.model.positions for run in ag.Run.all(runs)}
    assert positions == {
        f"length-{variant}-s{seed}": variant for variant in ("learned", "coupled", "abacus") for seed in (0, 1)
    }
    configs = [run.config for run in ag.Run.all(runs)]
    assert {config.data.shortest for config in configs} == {1}
    same = [config.model_copy(update={"model": None, "seed": 0}) for config in configs]
    assert all(config == same[0] for config in same)
    assert found["trained"] == [1, 3]
    assert found["failed"] == {}


def test_rows_hold_what_each_member_gets_right(found: ag.Finding, runs: Path) -> None:
    for row in found["rows"]:
        members = [ag.Run(runs / f"length-{row['variant']}-s{seed}") for seed in (0, 1)]
        table = [[shares_right(member, width, 30) for width in WIDTHS] for member in members]
        by_hand = [[shares["whole"] for shares in member] for member in table]
        assert row["accuracy"] == by_hand
        for what in ("digits", "rest"):
            assert row[what] == np.median([[shares[what] for shares in member] for member in table], axis=0).tolist()
        assert row["median"] == np.median(by_hand, axis=0).tolist()
        assert row["worst"] == np.min(by_hand, axis=0).tolist()
        assert row["predictions"] == []  # none is about these widths
    assert [panel.name for panel in found.panels] == ["median", "worst", "digits", "rest"]
    assert found.panels[0].values.shape == (3, 3)
    assert found.panels[0].marks[0].at == 3
    assert ag.Finding.from_json(found.to_json()).facts == json.loads(json.dumps(found.facts))


def test_shares_are_those_of_greedy_decoding(runs: Path, found: ag.Finding, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that is wrong in the first digit of every other sum, and in the end of some."""
    task = Addition(n_digits=2)
    run = ag.Run(runs / "length-coupled-s0")

    def oracle(subject, tokens):
        logits = F.one_hot(tokens[:, task.prompt_length :], task.d_vocab).float()
        first, end = tokens[:, 0] % 2 == 1, tokens[:, 1] < 3
        logits[first, 0] = logits[first, 0].roll(1, dims=-1)
        logits[end, -1] = logits[end, -1].roll(1, dims=-1)
        return logits

    monkeypatch.setattr(module.Subject, "answer_logits", oracle)
    found_shares = shares_right(run, 2, 400)
    rows = task.sample(400, seeded(torch.device("cpu"), module.FRESH_SEED, 2)).tolist()
    said = {"digits": [row[0] % 2 == 0 for row in rows], "rest": [row[1] >= 3 for row in rows]}
    said["whole"] = [digits and rest for digits, rest in zip(said["digits"], said["rest"], strict=True)]
    assert found_shares == {what: sum(right) / 400 for what, right in said.items()}


def test_whole_members_are_neither_trained_nor_counted_again(
    found: ag.Finding, runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "shares_right", lambda *_: pytest.fail("counted again"))
    again = ag.study(PLAN, seeds=[0, 1], settings=SMALL, runs_dir=runs, progress=False)
    assert again.facts == found.facts
    with pytest.raises(BaseException, match="counted again"):
        AccuracyByWidth(replace(PLAN, fresh=31)).measure(ag.Run(runs / "length-coupled-s0"))


def test_predictions_are_about_the_median() -> None:
    shares = [[1.0, 0.2, 0.0], [1.0, 0.96, 1.0], [0.9, 0.97, 0.5]]
    plan = replace(PLAN, widths=(30, 60, 100))
    coupled = next(variant for variant in plan.variants if variant.name == "coupled")
    members = [WidthShares(*[dict(zip(plan.widths, share, strict=True))] * 3) for share in shares]
    row = _row(coupled, AccuracyByWidth(plan), {"coupled": members, "learned": members})
    assert [(said["width"], said["says"], said["came_true"]) for said in row["predictions"]] == [
        (30, "> 0.99", True),
        (60, "> 0.95", True),
        (100, "> 0.9", False),
    ]
    assert row["worst"] == [0.9, 0.2, 0.0]
    for share in (0.0, 0.05):
        assert AtWidth(30, below=0.05).holds([WidthShares(*[{30: share}] * 3)], []) == (share < 0.05)
    nobody = _row(coupled, AccuracyByWidth(plan), {"coupled": [None, None], "learned": members})
    assert nobody["median"] == [None] * 3
    assert nobody["predictions"][0] == {
        "says": "> 0.99", "width": 30, "median": None, "by_seed": [None, None], "came_true": False
    }  # fmt: skip


def test_bad_input_is_one_line(runs: Path, found: ag.Finding) -> None:
    with pytest.raises(ConfigError, match="at least one seed"):
        ag.study("length", seeds=[], runs_dir=runs)
    with pytest.raises(TaskMismatchError, match="128 coupled positions"):
        shares_right(ag.Run(runs / "length-coupled-s0"), 128, 3)


def test_the_command_prints_both_tables(runs: Path, found: ag.Finding, run, monkeypatch: pytest.MonkeyPatch) -> None:
    shares = {"learned": 0.0, "coupled": 0.995, "abacus": 0.5}

    def measure(measuring: AccuracyByWidth, run: ag.Run) -> WidthShares:
        of_every_width = dict.fromkeys(measuring.widths, shares[run.name.split("-")[1]])
        return WidthShares(*[of_every_width] * len(PARTS))

    monkeypatch.setattr(MEASURES["widths"], "measure", measure)
    settings = [f"--set={name}={value}" for name, value in SMALL.items()]
    code, out, _ = run("study", "length", "--seeds", "0..1", *settings, "--quiet", "--runs-dir", runs)
    assert code == 0
    assert "6 of 9 predictions came true" in out
    assert "0.995" in out
    assert ["coupled", "30", ">", "0.99", "0.995", "yes"] in [line.split() for line in out.splitlines()]
    assert ["abacus", "30", ">", "0.99", "0.5", "no"] in [line.split() for line in out.splitlines()]


def test_the_recipe_is_one_layer_with_positions_by_digit() -> None:
    assert (add20().model.n_layers, add20().model.positions, add20().data.shortest) == (1, "coupled", 1)
