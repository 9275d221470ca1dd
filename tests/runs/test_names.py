"""Names of runs, paths with the separators of names in them, and commands that name a run."""

import json
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import algoscope as ag
from algoscope.core.errors import RunFolderError, SubjectError
from algoscope.runs.paths import split_name
from algoscope.runs.run_folder import Run
from algoscope.verdicts.studies.plans import Study, Variant
from conftest import SMALL

TINY = SMALL | {"steps": 2}
BAD = ["a/b", "../esc", "/abs", "", ".", "..", "-x", "sp ace", "a@1", "a?b", "a:b", "a\nb", "ü", "x" * 256]
MAKERS: dict[str, Callable[[str, Path, Run], object]] = {
    "train": lambda name, folder, run: ag.train(run.config, name=name, runs_dir=folder, progress=False),
    "train_many": lambda name, folder, run: ag.train_many({name: run.config}, runs_dir=folder, progress=False),
    "resume": lambda name, folder, run: ag.train("add3", name=name, runs_dir=folder, resume=True, progress=False),
    "merge": lambda name, folder, run: ag.merge(low_rank(run, folder), name=name, runs_dir=folder / "runs"),
    "import": lambda name, folder, run: ag.import_weights(
        folder / "no.safetensors", "addition", name=name, runs_dir=folder
    ),
    "create": lambda name, folder, run: Run.create(folder / "runs" / f"a{name}".replace("/", ":"), run.config),
}


def low_rank(run: Run, folder: Path) -> Run:
    config = ag.override(run.config, {"model.rank": 2, "steps": 1})
    return ag.train(config, name="low", runs_dir=folder / "low", resume=True, progress=False)


@pytest.mark.parametrize("maker", MAKERS)
def test_names_that_are_no_folder_of_the_directory_are_refused(maker: str, small_run: Run, tmp_path: Path) -> None:
    for name in BAD if maker != "create" else ["b c", "\x07", "x" * 255]:
        with pytest.raises(RunFolderError, match=r"cannot name a (run|file)") as refused:
            MAKERS[maker](name, tmp_path, small_run)
        assert "\n" not in str(refused.value)
        assert len(str(refused.value)) < 250
    assert not (tmp_path / "runs").exists()
    assert not (tmp_path.parent / "esc").exists()


def test_a_study_with_a_variant_that_no_folder_can_have_is_refused(tmp_path: Path) -> None:
    plan = Study("s", "Why?", "add3", TINY, (Variant("control", "as it is"), Variant("a/b", "changed")))
    with pytest.raises(RunFolderError, match="'s-a/b-s0' cannot name a run"):
        ag.study(plan, seeds=[0], runs_dir=tmp_path, progress=False)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("folder", ["r@home", "what?", "a@7/b?c=d", "100%/x y", "#1:é", "tail/"])
def test_a_path_that_exists_is_the_path(folder: str, small_run: Run, tmp_path: Path, monkeypatch) -> None:
    shutil.copytree(small_run.path, tmp_path / folder / "a")
    final, early = small_run.summary.weights_sha256, ag.open(f"run:{small_run.path}@16").weights_sha256
    for directory in (str(tmp_path / folder), folder):
        monkeypatch.chdir(tmp_path)
        name = f"run:{directory.rstrip('/')}/a"
        assert ag.open(name).weights_sha256 == final
        assert ag.open(f"{name}/").weights_sha256 == final
        assert ag.open(f"{name}@16").weights_sha256 == early
        wide = ag.open(f"{name}@16?n_digits=1")
        assert (wide.weights_sha256, wide.task.n_digits) == (early, 1)
        weights = f"{name.removeprefix('run:')}/checkpoints/step_00000016.safetensors"
        shutil.copy(small_run.path / "config.json", Path(weights).with_suffix(".json"))
        assert ag.open(f"file:{weights}").weights_sha256 == early
        with pytest.raises(ag.AlgoscopeError, match=r"step 17.*it has: 0"):
            ag.open(f"{name}@17")


def test_the_longest_part_that_exists_is_the_path() -> None:
    there = {"a", "a@5", "b?x=1"}
    assert split_name("a@5", there.__contains__) == ("a@5", None, "")
    assert split_name("a@6?x=1", there.__contains__) == ("a", "6", "x=1")
    assert split_name("b?x=1?y=2", there.__contains__) == ("b?x=1", None, "y=2")
    assert split_name("b?x=1@3?y=2?", there.__contains__) == ("b?x=1", "3", "y=2?")
    assert split_name("c@d?e=f@g", there.__contains__) == ("c", "d", "e=f@g")


@pytest.mark.parametrize("query", ["n_digits", "n_digits=1&n_digits=1", "=1"])
def test_a_query_that_is_not_field_and_value_is_refused(query: str, small_run: Run) -> None:
    with pytest.raises(SubjectError, match="=VALUE after the"):
        ag.open(f"run:{small_run.path}?{query}")


def test_the_home_folder_is_expanded_everywhere(small_run: Run, tmp_path: Path, monkeypatch, run) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    there = shutil.copytree(small_run.path, tmp_path / "home" / "rr" / "small")
    monkeypatch.setenv("ALGOSCOPE_RUNS", "~/rr")
    weights = "~/rr/small/checkpoints/step_00000060.safetensors"
    shutil.copy(there / "config.json", there / "checkpoints" / "config.json")
    for name in ("run:small", "run:~/rr/small", "run:~/rr/small@60", f"file:{weights}"):
        assert ag.open(name).weights_sha256 == small_run.summary.weights_sha256
    assert Run("~/rr/small").is_whole
    assert [found.name for found in Run.all("~/rr")] == ["small"]
    code, out, _ = run("runs", "--runs-dir=~/rr")
    assert (code, "small" in out) == (0, True)
    code, _, err = run("runs", "--runs-dir=~nobody9/rr")
    assert (code, err) == (2, err.splitlines()[0] + "\n")
    assert "~nobody9" in err
    assert not (tmp_path / "~").exists()


@pytest.mark.parametrize("folder", [None, "elsewhere", "it's here?", "~"])
def test_the_next_command_names_the_run_that_was_made(
    folder: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    where = [] if folder is None else ["--runs-dir", folder]
    settings = [part for field, value in TINY.items() for part in ("--set", f"{field}={value}")]
    code, out, _ = run("train", "add3", "--name", "a", *settings, *where, "--quiet")
    assert code == 0
    program, command, name = shlex.split(out.partition("next: ")[2])
    assert (program, command) == ("algoscope", "certify")
    code, out, err = run(command, name, "--quiet")
    assert code == 1, err
    made = tmp_path / {None: "runs", "~": "home"}.get(folder, folder) / "a"
    assert (made / "findings" / "certify.json").is_file()
    code, _, err = run("train", "add3", "--name", "a", *where)
    remove = shlex.split(err.partition("`")[2].partition("`")[0])
    assert remove[:3] == ["algoscope", "runs", "rm"]
    assert run(*remove[1:])[0] == 0
    assert not made.exists()


def test_names_of_folders_seen_from_within(small_run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(small_run.path)
    assert ag.open("run:.").origin.name == "small"
    assert Run("checkpoints/..").name == "small"


@pytest.mark.parametrize("config", ['{"model_type": "gpt2"}', "hi", "[]"])
def test_a_folder_of_another_tool_is_no_run_and_is_never_deleted(config: str, tmp_path: Path, monkeypatch, run) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in (tmp_path / "model", tmp_path / "runs" / "model"):
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(config)
        (folder / "notes.txt").write_text("precious")
    for name in ("model", "./model", str(tmp_path / "runs" / "model")):
        code, _, err = run("runs", "rm", name)
        assert (code, "no run" in err) == (2, True)
    with pytest.raises(RunFolderError, match="no run"):
        Run("model").remove()
    code, _, err = run("train", "add3", "--name", "model", "--set", "steps=1")
    assert code == 2
    assert "rm" not in err
    assert len(list(tmp_path.rglob("notes.txt"))) == 2
    assert json.loads(run("runs", "--json")[1]) == []


def test_a_runs_directory_that_is_a_file_is_refused(tmp_path: Path, run) -> None:
    (tmp_path / "file").write_text("x")
    code, _, err = run("runs", "--runs-dir", str(tmp_path / "file"))
    assert code == 2
    assert "is a file" in err
