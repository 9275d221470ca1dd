"""Runs cut short at a step, and their logs without what differs between two equal runs."""

import os
import signal

import pytest
import torch

from algoscope.runs.run_folder import Run
from algoscope.training.member import Member


def without_times(run: Run) -> list[dict]:
    return [{name: value for name, value in row.items() if name != "seconds"} for row in run.metrics()]


def interrupt_at(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Ctrl-C arrives while a step is being taken."""
    plain = Member.batch

    def batch(self) -> torch.Tensor:
        if self.step == step:
            os.kill(os.getpid(), signal.SIGINT)
        return plain(self)

    monkeypatch.setattr(Member, "batch", batch)
