"""Layer 5, the lenses: ways to look inside a model. `algoscope.lenses.NAME` is the lens of that name."""

from typing import Any

from algoscope.lenses.table import LENSES


def __getattr__(name: str) -> Any:
    if name in LENSES:
        return LENSES.load(name)
    raise AttributeError(f"module 'algoscope.lenses' has no lens {name!r}; it has {', '.join(LENSES)}")


def __dir__() -> list[str]:
    return [*LENSES, "LENSES"]
