"""Signatures are checked while tests run: a wrong shape is met at once, or a little later."""

import jaxtyping
import pytest
import torch

import typecheck
from algoscope.networks.position_encodings import sinusoidal_embedding


def embed_often(positions: torch.Tensor, n: int) -> None:
    for _ in range(n):
        sinusoidal_embedding(positions, 4)


@pytest.mark.parametrize("n_right", [0, typecheck.FIRST, typecheck.FIRST + 5])
def test_a_wrong_type_is_found_also_after_right_ones(n_right: int) -> None:
    embed_often(torch.arange(3), n_right)
    with pytest.raises(jaxtyping.TypeCheckError):
        embed_often(torch.arange(3.0), typecheck.STRIDE)
