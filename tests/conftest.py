"""Shapes in signatures are checked while tests run; runs and browsers are shared."""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import typecheck

typecheck.check_signatures("algoscope")

import pytest
import torch
from filelock import FileLock
from hypothesis import settings
from playwright.sync_api import Browser

import algoscope as ag
from algoscope.doors.cli.main import main
from browser import browser as launch

settings.register_profile("ours", deadline=None, max_examples=12, print_blob=True)
settings.register_profile("far", deadline=None, max_examples=60, print_blob=True)
settings.load_profile("ours")
os.environ["OMP_NUM_THREADS"] = "1"
torch.set_num_threads(1)

WEIGHTS = Path(__file__).parent / "weights"
SMALL = {  # a run of seconds that exercises everything
    "n_digits": 1,
    "steps": 60,
    "batch": 32,
    "data.n_test": 20,
    "train.eval_every": 20,
    "train.checkpoint_every": 16,
}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--trained-seed",
        type=int,
        default=0,
        metavar="N",
        help="train the models that tests share with seed N: what they assert holds for every seed (default: 0)",
    )


def pytest_runtest_setup() -> None:
    typecheck.calls.clear()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that look at a model which was trained for them are marked `trained`."""
    for item in items:
        if "trained_seed" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.trained)


@pytest.fixture(scope="session")
def trained_seed(request: pytest.FixtureRequest) -> int:
    """The seed of every model that is trained for a test to look at: another seed, another solution."""
    return request.config.getoption("--trained-seed")


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory, trained_seed: int) -> dict:
    """What `algoscope demo` leaves: the run, its verdict over every sum, its report. One worker makes it, for all;
    who changes it takes a copy.
    """
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    seconds = folder / "demo-seconds.json"
    with FileLock(folder / "demo.lock"):
        if not seconds.exists():
            made = ag.demo(seed=trained_seed, runs_dir=folder / "runs", progress=False)
            assert made["verdict"]["wrong"] == 0, f"add3 with seed {trained_seed} is no certified adder on this machine"
            seconds.write_text(json.dumps(made["seconds"]))
    run = ag.Run(folder / "runs" / "demo")
    verdict = ag.Finding.from_json((run.path / "findings" / "certify.json").read_text())
    return {
        "run": run,
        "verdict": verdict,
        "report": run.path / "report.html",
        "seconds": json.loads(seconds.read_text()),
    }


@pytest.fixture(scope="session")
def adder(demo: dict) -> "ag.Subject":
    """The trained 3-digit adder of the demo: right on every sum, by whichever solution training found."""
    return ag.open(demo["run"])


@pytest.fixture(scope="session")
def stored_adder() -> "ag.Subject":
    """A certified 3-digit adder whose weights are kept beside the tests: one solution, the same on every machine."""
    return ag.open(f"file:{WEIGHTS / 'add3.safetensors'}")


@pytest.fixture(scope="session")
def small_run(tmp_path_factory: pytest.TempPathFactory, trained_seed: int) -> "ag.Run":
    """A one-digit run, whole, that has not learned its task."""
    folder = tmp_path_factory.mktemp("runs")
    return ag.train("add3", name="small", seed=trained_seed, settings=SMALL, runs_dir=folder, progress=False)


@pytest.fixture
def own_run(small_run: "ag.Run", tmp_path: Path) -> "ag.Run":
    """A copy of the small run that a test may change: nothing has been measured of it yet."""
    measured = shutil.ignore_patterns("findings", "timeline", "report.html")
    return ag.Run(Path(shutil.copytree(small_run.path, tmp_path / "small", ignore=measured)))


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
