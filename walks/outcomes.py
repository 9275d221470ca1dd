"""What may come of a call: a right result, or one line of an `AlgoscopeError`; and what may never change by it."""

import json
import math
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import torch

import algoscope as ag

CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2066-\u2069\ufeff]")
LONGEST = 1000
ENDINGS = {
    ".html": b"<", ".png": b"\x89PNG", ".svg": b"<", ".json": b"{", ".csv": b"", ".pdf": b"%PDF", ".jpeg": b"\xff\xd8",
    ".webp": b"RIFF", ".safetensors": b"", ".onnx": b"",
}  # fmt: skip


class Refused:
    """The one line of an error."""

    def __init__(self, error: Exception) -> None:
        self.line = str(error)

    def __repr__(self) -> str:
        return f"refused: {self.line}"


def outcome(call: Callable[[], Any]) -> Any:
    """The result of a call, or its refusal; every other exception and every warning is passed on."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            return call()
        except ag.AlgoscopeError as error:
            line = str(error)
            assert line.strip(), "a refusal without a word"
            assert not CONTROL.search(line), f"more than one line, or raw control characters: {line!r}"
            assert len(line) <= LONGEST, f"a line of {len(line)} characters: {line[:200]!r}"
            return Refused(error)


def check_finding(finding: Any) -> None:
    """A finding is finite, can be read back, and its labels can be read and told apart."""
    text = finding.to_json()
    document = json.loads(text, parse_constant=_no_constant)
    again = ag.Finding.from_json(text)
    assert json.loads(again.to_json()) == document, "read back, it is another finding"
    finding.to_csv() if finding.panels else None
    for panel in finding.panels:
        assert panel.values.shape == tuple(len(axis.labels) for axis in panel.axes)
        for axis in panel.axes:
            for label in map(str, axis.labels):
                assert re.fullmatch(f"(?:(?!{CONTROL.pattern}).)+", label), f"{panel.name}: a label {label!r}"
    assert "nan" not in re.findall(r"[a-z]+", finding.claim.lower()), finding.claim
    for percent in re.findall(r"(-?\d[\d,.]*) ?%", finding.claim):
        value = float(percent.replace(",", "").rstrip("."))
        assert -100 <= value <= 100, f"{value} % in {finding.claim!r}"


def _no_constant(constant: str) -> None:
    raise AssertionError(f"{constant} in JSON")


def document(finding: Any) -> Any:
    """A finding without what may differ between two calls: how long it took."""
    return {key: value for key, value in json.loads(finding.to_json()).items() if key != "provenance"}


@contextmanager
def unchanged(subject: Any) -> Iterator[None]:
    """The weights, gradients and mode of a model, the settings of PyTorch and the state of its random numbers."""
    before = {name: value.clone() for name, value in subject.model.state_dict().items()}
    settings = ambient_state()
    yield
    for name, value in subject.model.state_dict().items():
        assert torch.equal(value, before[name]), f"{name} has changed"
    assert not any(weight.requires_grad for weight in subject.model.parameters())
    assert not subject.model.training
    for name, value in ambient_state().items():
        assert value == settings[name], f"{name} was {settings[name]}, is {value}"


def ambient_state() -> dict[str, Any]:
    return {
        "default dtype": torch.get_default_dtype(),
        "default device": torch.get_default_device(),
        "gradients": torch.is_grad_enabled(),
        "threads": torch.get_num_threads(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "random numbers": torch.random.get_rng_state().sum().item(),
        "NumPy's random numbers": int(np.random.get_state()[1].sum()),
    }


SURROUNDINGS: dict[str, Callable[[ExitStack], Any]] = {
    "as usual": lambda stack: None,
    "gradients off": lambda stack: stack.enter_context(torch.no_grad()),
    "inference mode": lambda stack: stack.enter_context(torch.inference_mode()),
    "float64 by default": lambda stack: _default_dtype(stack, torch.float64),
    "float16 by default": lambda stack: _default_dtype(stack, torch.float16),
    "autocast": lambda stack: stack.enter_context(torch.autocast("cpu", dtype=torch.bfloat16)),
    "another device by default": lambda stack: stack.enter_context(torch.device("meta")),
    "deterministic": lambda stack: _deterministic(stack),
}
"""Settings of PyTorch that change no result."""


def _default_dtype(stack: ExitStack, dtype: torch.dtype) -> None:
    stack.callback(torch.set_default_dtype, torch.get_default_dtype())
    torch.set_default_dtype(dtype)


def _deterministic(stack: ExitStack) -> None:
    stack.callback(torch.use_deterministic_algorithms, False)
    torch.use_deterministic_algorithms(True)


@contextmanager
def surroundings(name: str) -> Iterator[None]:
    with ExitStack() as stack:
        SURROUNDINGS[name](stack)
        yield


def close(a: Any, b: Any, tolerance: float, where: str = "") -> None:
    """Two documents agree: numbers to `tolerance`, everything else exactly."""
    if isinstance(a, dict) and isinstance(b, dict):
        assert a.keys() == b.keys(), f"{where}: {sorted(a.keys() ^ b.keys())}"
        for key in a:
            close(a[key], b[key], tolerance, f"{where}.{key}")
    elif isinstance(a, list) and isinstance(b, list):
        assert len(a) == len(b), f"{where}: {len(a)} and {len(b)} entries"
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            close(x, y, tolerance, f"{where}[{i}]")
    elif isinstance(a, float) and isinstance(b, (int, float)) and not math.isnan(a):
        assert abs(a - b) <= tolerance * max(1, abs(a)), f"{where}: {a} and {b}"
    else:
        assert a == b, f"{where}: {a!r} and {b!r}"


def is_what_its_ending_says(path: Path) -> None:
    assert path.exists(), f"{path} is not there"
    if path.is_dir():
        return
    content = path.read_bytes()
    assert content.startswith(ENDINGS.get(path.suffix, b"")), f"{path} begins with {content[:8]!r}"
    if path.suffix == ".png":
        assert content.rstrip().endswith(b"IEND\xaeB`\x82"), f"{path}: {len(content)} bytes"
    if path.suffix == ".svg":
        ElementTree.fromstring(content)
    if path.suffix == ".json":
        json.loads(content)
