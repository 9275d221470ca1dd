"""Many runs together: each equal to itself alone, none lost with another."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import torch

import algoscope as ag
from algoscope.config import RunConfig, override
from algoscope.core.errors import ArgumentError, Interrupted, RunFolderError
from algoscope.recipes.addition import add3
from algoscope.recipes.copying import copy8
from algoscope.recipes.modular import grok59
from algoscope.runs.run_folder import Run
from algoscope.training import population
from algoscope.training.member import Member
from algoscope.training.population import plan_for, train_many, worth_stacking
from conftest import SMALL

CPU = torch.device("cpu")


def config(seed: int, **settings) -> RunConfig:
    return override(add3(), SMALL | {"seed": seed} | settings)


def alone(configs: dict[str, RunConfig], folder: Path) -> dict[str, Run]:
    return {name: ag.train(cfg, name=name, runs_dir=folder, progress=False) for name, cfg in configs.items()}


def largest_difference(one: Run, other: Run) -> float:
    theirs = other.model().state_dict()
    return max(float((tensor - theirs[name]).abs().max()) for name, tensor in one.model().state_dict().items())


FAMILIES = {
    "muon": [config(0, steps=100), config(1, steps=100)],
    "numbers of their own": [
        config(0, steps=40, lr=0.003, **{"optim.weight_decay": 0.2, "model.init_embed_std": 0.05}),
        config(1, steps=40, lr=0.01, **{"optim.muon_lr": 0.03, "optim.betas": "[0.8, 0.99]"}),
        config(2, steps=30, lr=0.01, **{"optim.warmup_steps": 20, "data.hard_share": 0.0}),
    ],
    "a fixed set": [
        config(
            s, steps=40, **{"optim.name": "adamw", "data.source": "fixed", "data.n_train": 70, "optim.clip": 0.5 + s}
        )
        for s in range(2)
    ],
    "averaged": [config(s, steps=40, **{"optim.average": 0.9 + s / 20}) for s in range(2)],
    "in parts": [config(s, steps=40, **{"train.accumulate": 3}) for s in range(2)],
    "slow gradients": [
        config(
            s,
            steps=40,
            **{
                "optim.name": "adamw",
                "optim.grokfast": "ema",
                "optim.grokfast_strength": 1.0 + s,
                "optim.norm_clamp": 1.0,
                "optim.perpendicular": True,
                "train.loss": "stablemax",
                "train.loss_dtype": "float64",
            },
        )
        for s in range(2)
    ],
    "another network": [
        override(
            copy8(),
            {
                "seed": s, "steps": 40, "batch": 8, "d_model": 16, "model.d_mlp": 32, "data.n_train": 64,
                "data.n_test": 32, "model.positions": "rotary", "model.normalization_type": "RMS",
            },
        )
        for s in range(2)
    ],
}  # fmt: skip


@pytest.fixture
def float64(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """In float64 rounding has no time to grow: what is equal to 1e-9 after 100 steps is the same computation. Training
    sets the float type itself, which is kept from it here.
    """
    set_type = torch.set_default_dtype
    set_type(torch.float64)
    monkeypatch.setattr(torch, "set_default_dtype", lambda dtype: None)
    yield
    set_type(torch.float32)


@pytest.mark.parametrize(
    "family", [family if n < 3 else pytest.param(family, marks=pytest.mark.long) for n, family in enumerate(FAMILIES)]
)
def test_a_member_of_a_stack_equals_itself_alone(family: str, tmp_path: Path, float64: None) -> None:
    configs = {f"m{i}": cfg for i, cfg in enumerate(FAMILIES[family])}
    together = train_many(configs, runs_dir=tmp_path / "a", stack=len(configs), workers=1, progress=False)
    assert not together.failed
    for name, other in alone(configs, tmp_path / "b").items():
        run = together.runs[name]
        assert run.summary.stacked <= len(configs)
        assert run.summary.steps == other.summary.steps
        assert run.summary.examples == other.summary.examples
        assert run.steps == other.steps
        assert largest_difference(run, other) < 1e-9
        rows, wanted = run.metrics(), other.metrics()
        assert [row["step"] for row in rows] == [row["step"] for row in wanted]
        assert [row["loss"] for row in rows] == pytest.approx([row["loss"] for row in wanted], abs=1e-5)


@pytest.mark.parametrize(("workers", "stack"), [(1, 3), (2, 1)], ids=["stacked", "shared among processes"])
def test_a_member_that_diverges_leaves_the_rest(workers: int, stack: int, tmp_path: Path) -> None:
    good = {"good": config(0), "other": config(2)}
    configs = {"bad": config(1, lr=1e30, **{"optim.muon_lr": 1e30}), **good}
    found = train_many(configs, runs_dir=tmp_path / "a", workers=workers, stack=stack, progress=False)
    assert list(found.runs) == list(good)
    assert list(found.failed) == ["bad"]
    assert "last good checkpoint" in found.failed["bad"]
    assert Run(tmp_path / "a" / "bad").newest_step is not None
    if workers > 1:  # bit for bit
        for name, other in alone(good, tmp_path / "b").items():
            assert found.runs[name].summary.weights_sha256 == other.summary.weights_sha256


def test_whole_members_are_kept_and_names_that_are_taken_are_refused(tmp_path: Path) -> None:
    first = train_many({"m0": config(0)}, runs_dir=tmp_path, progress=False).runs["m0"]
    written = (first.path / "run.json").stat().st_mtime_ns
    with pytest.raises(RunFolderError, match="exists and is finished"):
        train_many({"m1": config(1), "m0": config(0)}, runs_dir=tmp_path, progress=False)
    assert not (tmp_path / "m1").exists()
    both = train_many({"m1": config(1), "m0": config(0)}, runs_dir=tmp_path, resume=True, progress=False)
    assert set(both.runs) == {"m0", "m1"}
    assert (first.path / "run.json").stat().st_mtime_ns == written


def test_ctrl_c_keeps_every_member(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, configs = Member.batch, {f"m{seed}": config(seed) for seed in range(3)}

    def batch(self) -> torch.Tensor:
        if self.step == 20:
            os.kill(os.getpid(), signal.SIGINT)
        return plain(self)

    with monkeypatch.context() as patch:
        patch.setattr(Member, "batch", batch)
        with pytest.raises(Interrupted, match=r"3 of 3 runs.*--resume"):
            train_many(configs, runs_dir=tmp_path / "a", workers=1, stack=3, progress=False)
    assert [Run(tmp_path / "a" / name).newest_step for name in configs] == [21, 21, 21]
    found = train_many(configs, runs_dir=tmp_path / "a", workers=1, stack=3, resume=True, progress=False)
    whole = train_many(configs, runs_dir=tmp_path / "b", workers=1, stack=3, progress=False)
    for name, run in found.runs.items():
        assert run.summary.weights_sha256 == whole.runs[name].summary.weights_sha256


@pytest.mark.long
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="finds processes in /proc")
def test_a_worker_that_is_killed_costs_only_its_own_members(tmp_path: Path) -> None:
    configs = {f"m{seed}": config(seed, steps=600) for seed in range(4)}
    done: dict[str, population.Population] = {}

    def go() -> None:
        done["found"] = train_many(configs, runs_dir=tmp_path, workers=2, stack=1, progress=False)

    thread = threading.Thread(target=go)
    thread.start()
    victim = wait_for(lambda: next((pid for pid in workers_of(os.getpid()) if Run(tmp_path / "m0").newest_step), None))
    os.kill(victim, signal.SIGKILL)
    thread.join()
    found = done["found"]
    assert len(found.failed) == 1
    assert "signal 9" in next(iter(found.failed.values()))
    assert len(found.runs) == 3
    again = train_many(configs, runs_dir=tmp_path, workers=1, resume=True, progress=False)
    assert len(again.runs) == 4


def workers_of(parent: int) -> list[int]:
    """The worker processes that a process has started and that still run."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            state, owner = (folder / "stat").read_text().rpartition(")")[2].split()[:2]
            mine = b"algoscope.training.worker" in (folder / "cmdline").read_bytes()
        except OSError:  # it has just ended
            continue
        if mine and int(owner) == parent and state not in "ZX":
            found.append(int(folder.name))
    return found


def runs_on(pid: int) -> bool:
    stat = Path(f"/proc/{pid}/stat")
    try:
        return stat.read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def wait_for(what, seconds: float = 60):
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if found := what():
            return found
        time.sleep(0.05)
    raise AssertionError("it never came")


def test_what_is_stacked_and_what_is_not(tmp_path: Path) -> None:
    def runs(*configs: RunConfig) -> list[Run]:
        return [Run.create(tmp_path / str(time.monotonic_ns()), cfg) for cfg in configs]

    assert worth_stacking(config(0), CPU) > 1
    assert worth_stacking(add3(), CPU) == 1
    assert worth_stacking(grok59(), CPU) == 1
    assert worth_stacking(add3(), torch.device("cuda")) > 1
    shaped_alike = runs(config(0), config(1, lr=0.5), config(2, steps=10))
    others = runs(config(0, d_model=8), config(0, batch=16), config(0, **{"optim.name": "adamw"}))
    plan = plan_for(shaped_alike + others, CPU, workers=1)
    assert [len(stack) for stack in plan.stacks] == [3, 1, 1, 1]
    assert plan_for(shaped_alike, CPU, workers=3).workers == 3
    with pytest.raises(ArgumentError, match="workers takes a whole number, from 1"):
        train_many({"m": config(0)}, runs_dir=tmp_path, workers=0)


def test_seeds_from_the_command_line(tmp_path: Path, run) -> None:
    settings = [part for name, value in SMALL.items() for part in ("--set", f"{name}={value}")]
    code, out, _ = run("train", "add3", "--seeds", "0..2", *settings, "--runs-dir", tmp_path, "--json", "--quiet")
    assert code == 0
    assert [row["run"] for row in json.loads(out)] == ["add3-s0", "add3-s1", "add3-s2"]
    broken = [*settings, "--set", "lr=1e30", "--set", "optim.muon_lr=1e30", "--name", "bad"]
    code, _, err = run("train", "add3", "--seeds", "0..1", *broken, "--runs-dir", tmp_path, "--quiet")
    assert code == 2
    assert err.startswith("algoscope: 2 of 2 runs failed: bad-s0: the loss is")
    assert err.count("\n") == 1
    assert run("train", "add3", "--workers", "2", "--runs-dir", tmp_path)[0] == 2


# ------------------------------------------------------------------ killed at any moment

SERVER = """
import os, sys
from algoscope.config import override
from algoscope.training.population import train_many
from algoscope.recipes.addition import add3

for line in sys.stdin:
    folder, settings, members, stack = eval(line)
    child = os.fork()
    if child == 0:
        configs = {f"m{seed}": override(add3(), settings | {"seed": seed}) for seed in range(members)}
        train_many(configs, runs_dir=folder, resume=True, workers=1, stack=stack, progress=False)
        os._exit(0)
    print(child, flush=True)
    print(os.waitpid(child, 0)[1], flush=True)
"""


class Trainer:
    """A process that has loaded PyTorch and forks one that trains whenever it is asked to."""

    def __init__(self) -> None:
        self.server = subprocess.Popen(
            [sys.executable, "-c", SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def start(self, folder: Path, settings: dict, members: int, stack: int) -> int:
        print((str(folder), settings, members, stack), file=self.server.stdin, flush=True)
        return int(self.server.stdout.readline())

    def ended(self) -> int:
        return int(self.server.stdout.readline())


@pytest.fixture(scope="module")
def trainer() -> Iterator[Trainer]:
    trainer = Trainer()
    yield trainer
    trainer.server.stdin.close()
    trainer.server.stdout.close()
    trainer.server.wait()


@pytest.mark.parametrize("kills", [3, pytest.param(50, marks=pytest.mark.long)])
@pytest.mark.parametrize("stack", [pytest.param(1, marks=pytest.mark.long), 3], ids=["one after another", "stacked"])
def test_killed_at_random_moments_every_run_ends_with_the_same_weights(
    stack: int, kills: int, tmp_path: Path, trainer: Trainer
) -> None:
    job = SMALL | {"steps": 120, "train.checkpoint_every": 10}, 3, stack
    began = time.monotonic()
    trainer.start(tmp_path / "whole", *job)
    assert trainer.ended() == 0
    whole = time.monotonic() - began
    chance = torch.Generator().manual_seed(stack)
    finished: dict[str, int] = {}
    killed = 0
    for _ in range(kills):
        child = trainer.start(tmp_path / "killed", *job)
        time.sleep(float(torch.rand(1, generator=chance)) * whole / 5)
        with suppress(ProcessLookupError):  # it has ended by itself
            os.kill(child, signal.SIGKILL)
        killed += trainer.ended() == signal.SIGKILL
        found = Run.all(tmp_path / "killed")
        for run in found:  # every folder that is there can be read
            assert run.config.seed in range(3)
            assert all("loss" in row for row in run.metrics())
            if run.newest_step is not None:
                run.model()
        for name, stamp in finished.items():  # and nothing that was finished is touched
            assert (tmp_path / "killed" / name / "run.json").stat().st_mtime_ns == stamp
        finished |= {run.name: (run.path / "run.json").stat().st_mtime_ns for run in found if run.is_whole}
        if len(finished) == 3:
            break
    assert killed >= 2
    trainer.start(tmp_path / "killed", *job)
    assert trainer.ended() == 0
    for run in Run.all(tmp_path / "whole"):
        again = Run(tmp_path / "killed" / run.name)
        assert [row["step"] for row in again.metrics()] == [row["step"] for row in run.metrics()]
        assert again.steps == run.steps
        assert not list(again.path.glob("**/*.tmp*"))
        if stack == 1:
            assert again.summary.weights_sha256 == run.summary.weights_sha256


def test_two_processes_on_one_name_the_second_is_refused(tmp_path: Path, trainer: Trainer) -> None:
    settings = {"steps": 100_000, "lr": 1e-9, "optim.muon_lr": 1e-9}  # it never learns, so it never ends sooner
    first = trainer.start(tmp_path, SMALL | settings, 1, 1)
    try:
        wait_for(lambda: Run(tmp_path / "m0").newest_step)
        with pytest.raises(RunFolderError, match="being trained by another process"):
            ag.train(config(0, **settings), name="m0", runs_dir=tmp_path, resume=True, progress=False)
        found = train_many({"m0": config(0, **settings)}, runs_dir=tmp_path, resume=True, progress=False)
        assert "being trained by another process" in found.failed["m0"]
    finally:
        os.kill(first, signal.SIGKILL)
        trainer.ended()


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="finds processes in /proc")
def test_workers_do_not_outlive_the_process_that_asked_them(tmp_path: Path) -> None:
    script = (
        "from algoscope.config import override\nfrom algoscope.training.population import train_many\n"
        "from algoscope.recipes.addition import add3\n"
        f"configs = {{f'm{{s}}': override(add3(), {SMALL | {'steps': 50_000}!r} | {{'seed': s}}) for s in range(2)}}\n"
        f"train_many(configs, runs_dir={str(tmp_path)!r}, workers=2, progress=False)"
    )
    parent = subprocess.Popen([sys.executable, "-c", script])
    wait_for(lambda: all(Run(tmp_path / name).newest_step for name in ("m0", "m1")))
    assert len(workers_of(parent.pid)) == 2
    orphans = workers_of(parent.pid)
    parent.kill()
    parent.wait()
    wait_for(lambda: not any(runs_on(pid) for pid in orphans))
    for name in ("m0", "m1"):
        with Run(tmp_path / name).lock():
            pass
        assert Run(tmp_path / name).resumable() is not None
