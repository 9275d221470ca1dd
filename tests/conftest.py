"""Shapes in signatures are checked on every call while tests run; runs and browsers are shared."""

import os
from collections.abc import Iterator
from pathlib import Path

from jaxtyping import install_import_hook

install_import_hook("algoscope", "typecheck.checked")

import pytest
import torch
from hypothesis import settings
from playwright.sync_api import Browser

import algoscope as ag
from algoscope.doors.cli.main import main
from browser import browser as launch

settings.register_profile("ours", deadline=None, max_examples=30, print_blob=True)
settings.load_profile("ours")
os.environ["OMP_NUM_THREADS"] = "1"
torch.set_num_threads(1)

SMALL = {  # a run of seconds that exercises everything
    "n_digits": 1,
    "steps": 60,
    "batch": 32,
    "data.n_test": 20,
    "train.eval_every": 20,
    "train.checkpoint_every": 16,
}


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> dict:
    """What `algoscope demo` leaves: the run, its verdict over every sum, its report."""
    return ag.demo(runs_dir=tmp_path_factory.mktemp("demo"), progress=False)


@pytest.fixture(scope="session")
def adder(demo: dict) -> "ag.Subject":
    """The trained 3-digit adder of the demo."""
    return ag.open(demo["run"])


@pytest.fixture(scope="session")
def small_run(tmp_path_factory: pytest.TempPathFactory) -> "ag.Run":
    """A one-digit run, whole, that has not learned its task."""
    return ag.train("add3", name="small", settings=SMALL, runs_dir=tmp_path_factory.mktemp("runs"), progress=False)


@pytest.fixture(scope="session")
def chromium() -> Iterator[Browser]:
    with launch() as browser:
        yield browser


@pytest.fixture
def runs_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty runs directory that commands and functions use by default."""
    monkeypatch.setenv("ALGOSCOPE_RUNS", str(tmp_path / "runs"))
    return tmp_path / "runs"


@pytest.fixture
def run(capsys: pytest.CaptureFixture):
    """Run a command in this process: (exit code, standard output, standard error)."""

    def call(*args: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            main([str(arg) for arg in args])
        out, err = capsys.readouterr()
        return ended.value.code, out, err

    return call
