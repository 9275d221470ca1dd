"""algoscope: train small transformers on algorithmic tasks, open them up, and certify what they learned.

    import algoscope as ag

    run = ag.train("add3")            # a Run: a folder on disk
    model = ag.open(run)              # a Subject: also "run:add3", "file:weights.safetensors"
    verdict = ag.certify(model)       # a Finding: every one of the 1,000,000 sums counted
    heads = ag.lenses.attention(model, ["123+456", "999+001"])
    heads.plot()                      # Plotly; heads.save("heads.png"), heads.to_json(), heads.to_csv()
    ag.report(model, "add3.html")     # one offline page

Everything loads on first use: importing the package loads neither torch nor Plotly.
"""

from typing import TYPE_CHECKING, Any

from algoscope import lenses
from algoscope.doors.public import PUBLIC
from algoscope.version import __version__

if TYPE_CHECKING:
    from algoscope.doors.public import *  # noqa: F403

__all__ = ["__version__", "lenses", *PUBLIC]

if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        if name in PUBLIC:
            return PUBLIC.load(name)
        raise AttributeError(f"module 'algoscope' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
