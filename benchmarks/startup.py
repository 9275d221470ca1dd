"""P6: what a user waits for before anything happens.

Run `python benchmarks/startup.py`.
"""

import subprocess
import sys
from collections.abc import Callable

import harness


def fresh(code: str) -> Callable[[], object]:
    """A fresh interpreter that runs the code."""
    return lambda: subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


def main() -> None:
    harness.heading("Start-up (P6)")
    helped = "import sys; from algoscope.doors.cli.main import main; sys.argv = ['algoscope', '--help']; main()"
    taken = harness.alternate(
        {
            "empty interpreter": fresh("pass"),
            "`import algoscope`": fresh("import algoscope"),
            "`algoscope --help`": fresh(helped),
            "`import torch`, for comparison": fresh("import torch"),
        },
        rounds=15,
    )
    empty = taken["empty interpreter"]
    harness.table(
        ["in a fresh interpreter", "milliseconds: median (min to max)", "above an empty interpreter"],
        [
            (
                name, harness.spread(1e3 * s for s in values),
                harness.spread(1e3 * (a - b) for a, b in zip(values, empty, strict=True)),
            )
            for name, values in taken.items()
        ],
    )  # fmt: skip


if __name__ == "__main__":
    main()
