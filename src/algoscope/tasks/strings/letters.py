"""Random letters for tasks on strings."""

import torch
from jaxtyping import Int
from torch import Tensor

FEW = 2  # letters in a hard draw

Letters = Int[Tensor, "batch column"]


def draw_letters(n: int, length: int, n_symbols: int, generator: torch.Generator, hard_share: float) -> Letters:
    """`n` rows of independent uniform letters, by number; a share `hard_share` of the rows has two letters at most."""
    device = generator.device
    letters = torch.randint(n_symbols, (n, length), generator=generator, device=device)
    if hard_share > 0:
        hard = torch.rand(n, 1, generator=generator, device=device) < hard_share
        few = torch.randint(n_symbols, (n, FEW), generator=generator, device=device)
        which = torch.randint(FEW, (n, length), generator=generator, device=device)
        letters = torch.where(hard, few.gather(1, which), letters)
    return letters
