"""The checker of signatures while tests run: an int is a float, as everywhere else in Python. While PyTorch exports a
model, sizes are symbols, and nothing is checked.
"""

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from beartype import BeartypeConf, beartype

strictly = beartype(conf=BeartypeConf(is_pep484_tower=True))


def checked(function: Callable[..., Any]) -> Callable[..., Any]:
    strict = strictly(function)

    @wraps(function)
    def either(*args: Any, **options: Any) -> Any:
        return (function if torch.compiler.is_exporting() else strict)(*args, **options)

    return either
