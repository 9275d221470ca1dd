"""Settings that a program makes for itself change no result, and stay as it made them."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import numpy as np
import pytest
import torch

import algoscope as ag
from algoscope.core.ambient import settled


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextmanager
def default_device(device: str) -> Iterator[None]:
    torch.set_default_device(device)
    try:
        yield
    finally:
        torch.set_default_device(None)


@contextmanager
def product_precision(name: str) -> Iterator[None]:
    torch.set_float32_matmul_precision(name)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision("highest")


@contextmanager
def deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


SURROUNDINGS = {
    "gradients off": lambda: torch.set_grad_enabled(False),
    "gradients on": lambda: torch.set_grad_enabled(True),
    "inference mode": lambda: torch.inference_mode(),
    "float64 by default": lambda: default_dtype(torch.float64),
    "float16 by default": lambda: default_dtype(torch.float16),
    "the meta device by default": lambda: default_device("meta"),
    "a device context": lambda: torch.device("meta"),
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "fast products": lambda: product_precision("medium"),
    "deterministic": deterministic,
    "anomalies": lambda: torch.autograd.set_detect_anomaly(True),
    "NumPy raises": lambda: np.errstate(all="raise"),
}


@pytest.fixture(params=SURROUNDINGS.values(), ids=SURROUNDINGS)
def surroundings(request: pytest.FixtureRequest) -> AbstractContextManager:
    return request.param()


def test_a_model_gives_the_same_logits_and_its_weights_the_same_hash(surroundings: AbstractContextManager) -> None:
    usual = ag.open("planted:carry-adder")
    tokens = usual.lay_out("123+456").tokens
    logits, cache = usual.run_with_cache(tokens)
    edits = [ag.Zero(("z", 1), head=0), ag.Zero(("mlp_out", 0))]
    with surroundings:
        opened = ag.open("planted:carry-adder")
        for model in (usual, opened):
            again, recorded = model.run_with_cache(tokens)
            assert again.dtype == torch.float32
            assert torch.equal(again, logits)
            assert all(torch.equal(recorded[name], cache[name]) for name in cache)
            assert torch.equal(model.run_each(tokens, edits), usual.run_each(tokens, edits))
            assert model.generate("999+1") == "0001<EOS>"
            assert model.weights_sha256 == usual.weights_sha256
            assert model.to_dtype(torch.float64).to_dtype(torch.float32).weights_sha256 == usual.weights_sha256


def test_what_the_caller_set_is_set_again() -> None:
    with default_dtype(torch.float64), torch.inference_mode(), np.errstate(all="raise"), product_precision("high"):
        with settled(gradients=True):
            assert torch.ones(1).dtype == torch.float32
            assert torch.is_grad_enabled()
            assert not torch.is_inference_mode_enabled()
            assert np.geterr()["under"] == "ignore"
        assert torch.ones(1).dtype == torch.float64
        assert torch.is_inference_mode_enabled()
        assert np.geterr()["under"] == "raise"
        assert torch.get_float32_matmul_precision() == "high"


def test_gradients_are_recorded_where_they_are_asked_for() -> None:
    with torch.inference_mode(), settled(gradients=True):
        weight = torch.ones(2, requires_grad=True)
        weight.sum().backward()
    assert weight.grad is not None


def test_looking_draws_nothing_from_the_global_generators() -> None:
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    model = ag.open("planted:induction")
    model.folded()
    model.run_each(model.to_tokens("abcab"), [ag.Resample(("z", 0), value=torch.zeros(1, 5, 2, 64))])
    assert torch.equal(before[0], torch.get_rng_state())
    assert (before[1] == np.random.get_state()[1]).all()
