"""A module of each style becomes our transformer, which computes the same; one with a foreign part is refused by it."""

import pytest
import torch

from algoscope.core.ambient import settled
from algoscope.core.errors import SubjectError
from algoscope.formats.own_modules.conversion import convert
from module_zoo import CONVERTIBLE, REFUSED, STYLES, logits_of

FIRST = (
    "adder", "nanogpt", "course", "textbook", "conv1d", "complex rotary", "multihead, sequence first",
    "encoder layers, post-norm", "lecture", "alibi", "fused per head, parallel",
)  # fmt: skip
"""One of each kind; the others vary them."""


@settled()
@pytest.mark.parametrize(
    "name", [name if name in FIRST else pytest.param(name, marks=pytest.mark.long) for name in CONVERTIBLE]
)
def test_a_module_of_each_style_becomes_ours(name: str) -> None:
    style = STYLES[name]
    module = style.make()
    conversion = convert(module)
    assert conversion.largest_difference < 1e-12
    assert conversion.unused == ()
    assert style.n_ctx in (None, conversion.model.cfg.n_ctx)
    tokens = torch.randint(0, style.d_vocab, (3, style.n_ctx or 12), generator=torch.Generator().manual_seed(7))
    rough = 1e-6 if conversion.rounded else 1e-12  # the module's own tables are in float32
    ours, theirs = conversion.model.double()(tokens), logits_of(module.double(), tokens)
    torch.testing.assert_close(ours, theirs.double(), rtol=rough, atol=rough)


@pytest.mark.parametrize("name", REFUSED)
def test_a_part_that_ours_has_not_is_named(name: str) -> None:
    with settled(), pytest.raises(SubjectError, match=STYLES[name].part):
        convert(STYLES[name].make())
