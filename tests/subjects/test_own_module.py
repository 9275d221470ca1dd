"""A module of one's own as a subject: from memory and from a file, left as it was, and a black box where it must be."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import algoscope as ag
from algoscope.core.errors import SubjectError, UnknownNameError
from module_zoo import SIZED, STYLES, saved

ADDER = ag.Addition(n_digits=3)


def described(name: str) -> nn.Module:
    return STYLES[name].make(**SIZED[name][0])


@pytest.mark.parametrize("name", SIZED)
def test_the_described_systems_open_with_all_their_parameters(name: str) -> None:
    subject = ag.open(
        described(name), task=ADDER if name == "adder" else None, tokenizer="abcdefgh"[: 8 * (name != "adder")] or None
    )
    assert sum(weight.numel() for weight in subject.model.parameters()) == SIZED[name][1]
    assert not subject.is_black_box
    assert "differ by at most" in subject.note


def test_every_lens_and_verdict_takes_it() -> None:
    subject = ag.open(STYLES["adder"].make(d_vocab=14, n_ctx=7), task=ag.Addition(n_digits=1))
    assert ag.certify(subject)["domain"]["checked"] == 100
    assert len(ag.lenses.roles(subject)["heads"]) == 2


def test_the_module_is_left_as_it_was() -> None:
    module = STYLES["nanogpt"].make(d_vocab=14, n_ctx=9)
    module.train()
    first = next(module.children())
    first.eval()
    seen: list[object] = []
    module.register_forward_hook(lambda *_: seen.append(1))
    weight = next(module.parameters())
    weight.grad = torch.ones_like(weight)
    weight.requires_grad_(False)
    modes = [inner.training for inner in module.modules()]
    state = {name: value.clone() for name, value in module.state_dict().items()}
    torch.manual_seed(5), np.random.seed(5)
    states = torch.get_rng_state(), np.random.get_state()[1].tolist()
    subject = ag.open(module, tokenizer="0123456789+=$_")
    assert seen == []
    assert modes == [inner.training for inner in module.modules()]
    assert weight.grad is not None
    assert not weight.requires_grad
    assert all(p.requires_grad for p in module.parameters() if p is not weight)
    assert all(value.equal(state[name]) for name, value in module.state_dict().items())
    assert torch.get_rng_state().equal(states[0])
    assert np.random.get_state()[1].tolist() == states[1]
    before = subject(torch.zeros(1, 2, dtype=torch.long)).clone()
    with torch.no_grad():
        weight += 1  # what is done to the module later does not reach the subject
    assert subject(torch.zeros(1, 2, dtype=torch.long)).equal(before)


def test_what_cannot_be_converted_is_a_black_box_that_says_why() -> None:
    module = STYLES["lstm"].make(d_vocab=14)
    with pytest.raises(SubjectError, match="lstm"):
        ag.open(module)
    subject = ag.open(module, task=ag.Addition(n_digits=1))
    assert subject.is_black_box
    assert "lstm" in subject.note
    assert ag.certify(subject)["domain"]["checked"] == 100


def test_options_are_named() -> None:
    module = STYLES["alibi"].make(d_vocab=14)
    assert ag.open(module, tokenizer="0123456789+=$_", n_ctx=20).cfg.n_ctx == 20
    with pytest.raises(UnknownNameError, match=r"n_cxt.*did you mean 'n_ctx'"):
        ag.open(module, tokenizer="0123456789+=$_", n_cxt=20)
    with pytest.raises(SubjectError, match="n_ctx must be a number of tokens from 1 on, not 0"):
        ag.open(module, n_ctx=0)


def test_a_file_makes_it_and_gives_its_weights(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text("from module_zoo import adder\n\ndef make():\n    return adder.make(d_vocab=14, n_ctx=7, seed=3)\n")
    weights = saved(STYLES["adder"].make(d_vocab=14, n_ctx=7, seed=4), tmp_path / "w.safetensors")
    task = ag.Addition(n_digits=1)
    plain, other = (ag.open(f"module:{file}:make{query}", task=task) for query in ("", f"?weights={weights}"))
    assert plain.cfg == other.cfg
    assert plain.weights_sha256 != other.weights_sha256
