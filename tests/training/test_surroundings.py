"""Training in a program that has set things for itself: the same weights bit for bit, and its settings stay."""

import os
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch

import algoscope as ag
from algoscope.core.errors import DivergedError
from algoscope.training.member import Member
from conftest import SMALL

SHORT = SMALL | {"steps": 24}

pytestmark = pytest.mark.long  # the walks ask some of it each time


@contextmanager
def changed(change: Callable[..., object], value: object, usual: object) -> Iterator[None]:
    change(value)
    yield
    change(usual)


@contextmanager
def seeded() -> Iterator[None]:
    torch.manual_seed(7)
    np.random.seed(7)  # the generator that others use
    yield


SURROUNDINGS: dict[str, Callable[[], AbstractContextManager]] = {
    "gradients off": lambda: changed(torch.set_grad_enabled, False, True),
    "inference mode": torch.inference_mode,
    "float64": lambda: changed(torch.set_default_dtype, torch.float64, torch.float32),
    "float16": lambda: changed(torch.set_default_dtype, torch.float16, torch.float32),
    "another device": lambda: torch.device("meta"),
    "three threads": lambda: changed(torch.set_num_threads, 3, 1),
    "deterministic": lambda: changed(torch.use_deterministic_algorithms, True, False),
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "anomalies": lambda: torch.autograd.set_detect_anomaly(True),
    "warnings are errors": lambda: warnings.catch_warnings(action="error"),
    "global seeds": seeded,
}


def settings_now() -> tuple:
    state = torch.get_rng_state().tolist(), np.random.get_state()[1].tolist()
    modes = torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.is_anomaly_enabled()
    return state, modes, torch.get_default_dtype(), torch.get_num_threads()


@pytest.fixture(scope="module")
def usual(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, list[str]]:
    return trained(tmp_path_factory.mktemp("usual"))


def trained(folder: Path) -> tuple[str, list[str]]:
    """Hashes of a run alone, and of two in a stack."""
    run = ag.train("add3", settings=SHORT, runs_dir=folder, progress=False)
    configs = {f"s{seed}": run.config.model_copy(update={"seed": seed}) for seed in (1, 2)}
    several = ag.train_many(configs, runs_dir=folder, workers=1, stack=2, progress=False)
    assert not several.failed
    return run.summary.weights_sha256, [run.summary.weights_sha256 for run in several.runs.values()]


@pytest.mark.parametrize("name", SURROUNDINGS)
def test_what_a_program_sets_for_itself_changes_no_weight(name: str, usual: tuple, tmp_path: Path) -> None:
    with SURROUNDINGS[name]():
        before = settings_now()
        assert trained(tmp_path) == usual
        assert settings_now() == before


def test_a_loss_that_is_not_finite_is_named_where_anomalies_are_looked_for(tmp_path: Path) -> None:
    with torch.autograd.set_detect_anomaly(True), pytest.raises(DivergedError, match="is nan at step"):
        ag.train("add3", settings=SHORT | {"lr": 1e20}, runs_dir=tmp_path, progress=False)


def test_a_change_of_the_working_directory_moves_no_run(usual: tuple, tmp_path: Path, monkeypatch) -> None:
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "here")
    plain = Member.batch

    def batch(self: Member) -> object:
        os.chdir(tmp_path / "there")
        return plain(self)

    monkeypatch.setattr(Member, "batch", batch)
    run = ag.train("add3", settings=SHORT, runs_dir="runs", progress=False)
    assert run.summary.weights_sha256 == usual[0]
    assert (tmp_path / "here" / "runs" / "add3-s0" / "run.json").is_file()
    assert not list((tmp_path / "there").iterdir())


@pytest.mark.long
def test_neither_environment_nor_options_of_python_change_a_weight(usual: tuple, tmp_path: Path) -> None:
    script = (
        "import algoscope as ag, pathlib\n"
        f"run = ag.train('add3', settings={SHORT!r}, runs_dir={str(tmp_path)!r}, progress=False)\n"
        "configs = {f's{seed}': run.config.model_copy(update={'seed': seed}) for seed in (0, 1)}\n"
        f"runs = ag.train_many(configs, runs_dir={str(tmp_path)!r}, workers=2, progress=False).runs\n"
        "print(run.summary.weights_sha256, runs['s0'].summary.weights_sha256)"
    )
    other = {"PYTHONHASHSEED": "7", "OMP_NUM_THREADS": "2", "LC_ALL": "C", "PYTHONWARNINGS": "error", "TERM": "dumb"}
    environment = {name: value for name, value in os.environ.items() if name != "HOME"} | other
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, cwd=tmp_path, check=True, text=True, capture_output=True
    )
    assert done.stdout.split() == [usual[0]] * 2
