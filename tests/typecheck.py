"""The checker of signatures while tests run: an int is a float, as everywhere else in Python.

A check costs ten times what the checked call does on a tiny model, so each test checks the first calls of every
function, and then one of many. While PyTorch exports a model, sizes are symbols, and nothing is checked.
"""

from collections import Counter
from collections.abc import Callable
from functools import wraps
from typing import Any

import jaxtyping
import torch
from beartype import BeartypeConf, beartype
from jaxtyping import install_import_hook

FIRST, STRIDE = 3, 41  # calls of a function in one test that are checked: the first three, and every 41st
strictly = beartype(conf=BeartypeConf(is_pep484_tower=True))
calls: Counter[Callable[..., Any]] = Counter()
always = jaxtyping.jaxtyped


def sometimes(function: Any = None, *, typechecker: Any) -> Any:
    """What `jaxtyping.jaxtyped` does, on some calls. Dataclasses are checked whenever one is made."""
    if function is None:
        return lambda function: sometimes(function, typechecker=typechecker)
    if isinstance(function, type):
        inner = getattr(function.__init__, "__globals__", {}).get("__name__") == __name__  # a decorator has wrapped it
        return function if inner else always(function, typechecker=typechecker)
    checked = always(function, typechecker=typechecker)

    @wraps(function)
    def call(*args: Any, **options: Any) -> Any:
        calls[function] += 1
        n = calls[function]
        now = (n <= FIRST or n % STRIDE == 0) and not torch.compiler.is_exporting()
        if now:
            return checked(*args, **options)
        with always("context"):  # sizes that its own checks of arguments meet are not those of its caller
            return function(*args, **options)

    return call


def check_signatures(package: str) -> None:
    """Check the signatures of a package that is imported from now on."""
    jaxtyping.jaxtyped = sometimes
    install_import_hook(package, "typecheck.strictly")
