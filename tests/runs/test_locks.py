"""A run that a process is training is asked for by its lock, from every command that touches it."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

import algoscope as ag
from algoscope.core.errors import RunFolderError
from algoscope.core.progress import Watcher
from algoscope.runs.run_folder import Run
from algoscope.training.train import train_together
from conftest import SMALL

HOLD = """
import sys, time
from algoscope import Run
with Run(sys.argv[1]).lock():
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def stopped(own_run: Run) -> Run:
    """A run without its last part: it stopped at step 48."""
    for path in (own_run.path / "run.json", *own_run.path.glob("*/step_00000060.safetensors")):
        path.unlink()
    return own_run


@pytest.fixture
def live(stopped: Run) -> Iterator[Run]:
    """The same, while its lock is held, as a trainer holds it."""
    with stopped.lock():
        yield stopped


def files(run: Run) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in run.path.rglob("*") if path.is_file()}


REFUSED: dict[str, Callable[[Path], object]] = {
    "train": lambda folder: ag.train("add3", name="small", runs_dir=folder, progress=False),
    "resume": lambda folder: ag.train("add3", name="small", runs_dir=folder, resume=True, progress=False),
    "remove": lambda folder: Run(folder / "small").remove(),
    "report": lambda folder: ag.report("run:small", runs_dir=folder),
    "merge": lambda folder: ag.merge("run:small", runs_dir=folder),
    "census": lambda folder: ag.census(["small", "a-small"], runs_dir=folder),
    "summary": lambda folder: Run(folder / "small").summary,
    "start": lambda folder: ag.train("sub3_lora", settings={"start.run": "small"}, runs_dir=folder, progress=False),
}


@pytest.mark.parametrize("action", REFUSED)
def test_what_a_process_trains_is_left_alone_with_one_line(action: str, live: Run) -> None:
    before = files(live)
    if action == "census":
        (live.path.parent / "a-small").symlink_to(live.path)
    with pytest.raises(RunFolderError, match=r"small is being trained by another process.* step 48: wait.*--name$"):
        REFUSED[action](live.path.parent)
    assert files(live) == before


def test_commands_give_the_same_line_and_the_list_says_training(live: Run, run, monkeypatch) -> None:
    monkeypatch.setenv("ALGOSCOPE_RUNS", str(live.path.parent))
    lines = {run(*command)[::2] for command in (["runs", "rm", "small"], ["train", "add3", "--name", "small"])}
    assert len(lines) == 1
    code, line = lines.pop()
    assert code == 2
    assert "being trained by another process" in line
    assert " training " in run("runs")[1]
    assert '"state": "training"' in run("runs", "--json")[1]
    assert '"state": "training"' in run("runs", "show", "small", "--json")[1]
    code, out, _ = run("certify", "run:small", "--quiet")
    assert "the newest checkpoint of a run that is still being trained" in out


def test_a_run_can_be_looked_at_while_it_is_trained(live: Run) -> None:
    subject = ag.open("run:small", runs_dir=live.path.parent)
    assert subject.weights_sha256 == ag.open("run:small@48", runs_dir=live.path.parent).weights_sha256


def test_a_killed_process_leaves_no_lock(stopped: Run) -> None:
    with subprocess.Popen([sys.executable, "-c", HOLD, stopped.path], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert stopped.is_training
        os.kill(process.pid, signal.SIGKILL)
    assert not stopped.is_training
    stopped.remove()
    assert not stopped.path.exists()


def test_asking_makes_no_file_and_needs_no_permission(stopped: Run) -> None:
    (stopped.path / ".lock").unlink()
    assert not stopped.is_training
    assert not (stopped.path / ".lock").exists()


@pytest.mark.parametrize("write", ["keep_numbers", "append_metrics", "save_checkpoint", "cut_metrics"])
def test_a_removed_run_is_not_made_again_by_who_still_writes(write: str, own_run: Run) -> None:
    arguments = {
        "keep_numbers": ("m", "0" * 64, {}),
        "append_metrics": ([{"step": 1}],),
        "save_checkpoint": (1, {}, {}),
        "cut_metrics": (5,),
    }
    own_run.remove()
    with pytest.raises(RunFolderError, match=r"there is no run at .*small: it has been removed"):
        getattr(own_run, write)(*arguments[write])
    with pytest.raises(RunFolderError, match="it has been removed"):
        own_run.remove()
    assert not own_run.path.exists()


def test_a_member_that_was_removed_or_is_taken_leaves_the_rest(tmp_path: Path) -> None:
    config = ag.override(ag.train("add3", settings=SMALL, runs_dir=tmp_path, progress=False).config, {"steps": 20})
    runs = [Run.create(tmp_path / name, config) for name in ("gone", "taken", "left")]
    runs[0].remove()
    with runs[1].lock():
        failed = train_together(runs, torch.device("cpu"), Watcher(), threading.Event())
    assert {name: str(error).split(":")[0].split(" by ")[0] for name, error in failed.items()} == {
        "gone": f"there is no run at {runs[0].path}",
        "taken": f"run {runs[1].path} is being trained",
    }
    assert runs[2].is_whole


def test_removal_of_a_link_leaves_what_it_points_to(own_run: Run, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(own_run.path)
    Run(tmp_path / "link").remove()
    assert not (tmp_path / "link").exists()
    assert own_run.is_whole


def test_a_folder_of_other_files_does_not_become_a_run(tmp_path: Path, small_run: Run) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "draft.tex").write_text("years of work")
    with pytest.raises(RunFolderError, match=r"thesis is no run, but holds draft\.tex: choose another --name"):
        Run.create(tmp_path / "thesis", small_run.config)
