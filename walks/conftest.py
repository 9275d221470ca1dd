"""Walks: generated calls of everything public, as a user makes them, with arguments of right and of wrong types.

They run in a process of their own: the tests' own checks of shapes and types would answer wrong arguments first.
Every example is drawn from a fixed seed; `pytest walks --hypothesis-profile=far` draws new ones, and more.
"""

import os

os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import transformers
from hypothesis import HealthCheck, Phase, settings

QUIET = {"deadline": None, "print_blob": True, "suppress_health_check": list(HealthCheck), "database": None}
settings.register_profile("near", **QUIET, derandomize=True, max_examples=4, phases=[Phase.generate])
settings.register_profile("far", **QUIET, max_examples=40)
settings.load_profile("near")
torch.set_num_threads(1)
transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()


@pytest.fixture(scope="session", autouse=True)
def somewhere(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Every walk starts in an empty folder, with an empty home beside it; nothing may appear outside of the two."""
    sandbox = tmp_path_factory.mktemp("sandbox")
    before = Path.cwd()
    for folder in ("home", "here"):
        (sandbox / folder).mkdir()
    os.environ["HOME"] = str(sandbox / "home")
    os.environ.pop("ALGOSCOPE_RUNS", None)
    os.chdir(sandbox / "here")
    yield sandbox
    os.chdir(before)
