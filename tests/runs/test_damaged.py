"""Damaged run folders: one line that names the file, and the healthy runs beside them are listed."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import algoscope as ag
from algoscope.core.errors import CheckpointError, RunFolderError
from algoscope.runs.run_folder import Run

Change = Callable[[Path], Any]


def content(name: str, data: bytes) -> Change:
    return lambda folder: (folder / name).write_bytes(data)


def value(name: str, *path: str, to: Any) -> Change:
    """One value of a JSON file changed."""

    def change(folder: Path) -> None:
        whole = json.loads((folder / name).read_text())
        inner = whole
        for key in path[:-1]:
            inner = inner[key]
        inner[path[-1]] = to
        (folder / name).write_text(json.dumps(whole))

    return change


def first_row_cut(folder: Path) -> None:
    rows = (folder / "metrics.jsonl").read_text().splitlines()
    (folder / "metrics.jsonl").write_text("\n".join([rows[0][:20], *rows[1:]]))


LISTED_AS_DAMAGED: dict[str, Change] = {
    "empty config": content("config.json", b""),
    "another encoding": content("config.json", '{"recipe": "ü"}'.encode("utf-16")),
    "deep config": content("config.json", b"[" * 100_000),
    "rate that is no number": value("config.json", "optim", "lr", to=float("nan")),
    "unknown field": value("config.json", "more", to=1),
    "truncated summary": content("run.json", b'{"recipe": "add3", "se'),
    "summary in latin-1": content("run.json", b'{"recipe": "\xff"}'),
    "loss that is no number": value("run.json", "loss", to=float("nan")),
    "steps in words": value("run.json", "steps", to="many"),
}


@pytest.mark.parametrize("damage", LISTED_AS_DAMAGED)
def test_the_list_has_healthy_runs_and_names_the_damaged_one(damage: str, own_run: Run, run) -> None:
    shutil.copytree(own_run.path, own_run.path.with_name("good"))
    LISTED_AS_DAMAGED[damage](own_run.path)
    where = ("--runs-dir", own_run.path.parent)
    code, out, err = run("runs", *where)
    assert code == 0
    assert [line.split()[0] for line in out.splitlines()] == ["run", "good", "small"]
    assert "damaged" in out.splitlines()[2]
    assert err.startswith("small: ")
    assert str(own_run.path) in err
    rows = json.loads(run("runs", "--json", *where)[1])
    assert [(row["run"], row["state"], row["why"] is None) for row in rows] == [
        ("good", "finished", True),
        ("small", "damaged", False),
    ]
    for command in (["runs", "show", "small"], ["generate", "run:small", "1+1"], ["params", "run:small"]):
        code, _, err = run(*command, *where)
        assert code == 2
        assert len(err.splitlines()) == 1
        assert str(own_run.path) in err
    assert run("runs", "rm", "small", *where)[0] == 0


SIZES: dict[str, Change] = {
    "wider than numbers go": value("config.json", "model", "d_model", to=10**30),
    "wider than memory": value("config.json", "model", "d_model", to=10**12),
    "endlessly many layers": value("config.json", "model", "n_layers", to=10**9),
}


@pytest.mark.parametrize("size", SIZES)
def test_a_config_of_impossible_size_is_one_line(size: str, own_run: Run) -> None:
    SIZES[size](own_run.path)
    with pytest.raises(CheckpointError) as refused:
        ag.open(own_run)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "damage", [first_row_cut, content("metrics.jsonl", b"\xff\xfe\n{}\n"), content("metrics.jsonl", b"[1]\n[2]")]
)
def test_damage_in_the_middle_of_the_metrics_is_named_with_its_line(damage: Change, own_run: Run) -> None:
    damage(own_run.path)
    with pytest.raises(RunFolderError, match=r"metrics\.jsonl is damaged at line 1 .*: restore it"):
        own_run.metrics()


def test_the_last_weights_are_not_replaced_by_earlier_ones(own_run: Run) -> None:
    (own_run.path / "checkpoints" / "step_00000060.safetensors").unlink()
    with pytest.raises(CheckpointError, match="no checkpoint at step 60; it has: 0, 1, 2"):
        ag.open(own_run)
    assert ag.open(f"run:{own_run.path}@48").has_task


def test_files_that_are_no_checkpoints_are_no_steps(own_run: Run) -> None:
    steps = own_run.steps
    (own_run.path / "checkpoints" / "step_abc.safetensors").write_bytes(b"")
    assert own_run.steps == steps


def test_a_damaged_verdict_is_made_again_and_those_about_other_weights_are_not_shown(own_run: Run, run) -> None:
    assert run("certify", f"run:{own_run.path}", "--quiet")[0] == 1
    file = own_run.path / "findings" / "certify.json"
    shown = json.loads(run("runs", "show", own_run.path, "--json")[1])
    assert shown["wrong"] > 0
    assert len(shown["findings"]) == 1
    value("findings/certify.json", "provenance", "weights_sha256", to="0" * 64)(own_run.path)
    shown = json.loads(run("runs", "show", own_run.path, "--json")[1])
    assert (shown["wrong"], shown["findings"]) == (None, [])
    file.write_text(file.read_text()[:100])
    code, _, err = run("runs", "show", own_run.path)
    assert (code, f"{file} cannot be read as a finding" in err) == (2, True)
    assert run("certify", f"run:{own_run.path}", "--quiet")[0] == 1
    assert own_run.findings()[0].kind == "certify"


def test_a_folder_that_is_a_file_is_one_line(own_run: Run, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("x")
    with pytest.raises(RunFolderError, match=r"cannot write .*taken: File exists"):
        ag.train(own_run.config, name="taken", runs_dir=tmp_path, progress=False)
    with pytest.raises(RunFolderError, match="no run 'taken'"):
        ag.open("run:taken", runs_dir=tmp_path)
