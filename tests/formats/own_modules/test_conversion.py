"""A module of each style becomes our transformer; both compute the same logits."""

import pytest
import torch
from tests.module_zoo import CONVERTIBLE, STYLES, logits_of

from algoscope.core.ambient import settled
from algoscope.formats.own_modules.conversion import convert


@settled()
@pytest.mark.parametrize("name", CONVERTIBLE)
def test_a_module_of_each_style_becomes_ours(name: str) -> None:
    style = STYLES[name]
    module = style.make()
    conversion = convert(module)
    assert conversion.largest_difference < 1e-12
    assert conversion.unused == ()
    assert style.n_ctx in (None, conversion.model.cfg.n_ctx)
    n = style.n_ctx or 12
    tokens = torch.randint(0, style.d_vocab, (3, n), generator=torch.Generator().manual_seed(7))
    rough = 1e-6 if conversion.rounded else 1e-12  # tables of float32 are rounded
    torch.testing.assert_close(
        conversion.model.double()(tokens), logits_of(module.double(), tokens).double(), rtol=rough, atol=rough
    )
