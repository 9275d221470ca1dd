"""The orthonormal real Fourier basis on the numbers modulo n."""

import numpy as np
from jaxtyping import Float


def fourier_basis(n: int) -> Float[np.ndarray, "n n"]:
    """Row 0 is constant, rows 2k - 1 and 2k are the cosine and the sine of frequency k = 1 .. (n - 1) / 2, of unit
    length; for an even n the last row is 1, -1, 1, ... Rows are orthogonal.
    """
    multiples = np.outer(np.arange((n - 1) // 2) + 1, np.arange(n)) % n  # integers, so that no angle is rounded twice
    angle = multiples * (2 * np.pi / n)
    waves = np.stack([np.cos(angle), np.sin(angle)], axis=1).reshape(-1, n) * np.sqrt(2 / n)
    ends = [np.where(np.arange(n) % 2, -1.0, 1.0)[None] / np.sqrt(n)] if n % 2 == 0 else []
    return np.concatenate([np.full((1, n), 1 / np.sqrt(n)), waves, *ends])
