"""The modules of `module_zoo` are what they are said to be: causal decoders of the stated sizes; no weight is zero."""

import pytest
import torch

from module_zoo import SIZED, STYLES, logits_of


@pytest.mark.parametrize("name", STYLES)
def test_each_style_is_a_causal_decoder_that_uses_every_weight(name: str) -> None:
    style = STYLES[name]
    state = torch.get_rng_state()
    module = style.make().double()
    assert torch.equal(state, torch.get_rng_state())
    n = style.n_ctx or 12
    tokens = torch.randint(style.d_vocab, (3, n), generator=torch.Generator().manual_seed(1))
    logits = logits_of(module, tokens)
    assert logits.shape == (3, n, style.d_vocab)
    assert logits.isfinite().all()
    for cut in (1, n - 1):
        assert torch.allclose(logits_of(module, tokens[:, :cut]), logits[:, :cut], atol=1e-9)
    changed = tokens.clone()
    changed[:, -1] = (changed[:, -1] + 1) % style.d_vocab
    after = logits_of(module, changed)
    assert torch.allclose(after[:, :-1], logits[:, :-1], atol=1e-9)
    assert not torch.allclose(after[:, -1], logits[:, -1])
    assert all(weight.abs().max() > 0 for weight in module.parameters())
    other = style.make(seed=1, n_layers=1).double()
    assert not torch.allclose(logits_of(other, tokens), logits)


@pytest.mark.parametrize("name", SIZED)
def test_the_described_systems_have_the_stated_number_of_parameters(name: str) -> None:
    sizes, n_parameters = SIZED[name]
    assert sum(weight.numel() for weight in STYLES[name].make(**sizes).parameters()) == n_parameters
