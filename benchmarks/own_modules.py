"""Modules of PyTorch in each style against our transformer in their place: parameters, largest difference, seconds.

Run `python benchmarks/own_modules.py` for the table of styles, or `python benchmarks/own_modules.py large` for a module
of GPT-2 small's size, with the memory that opening takes.
"""

import sys
import time
from pathlib import Path

from algoscope.core.ambient import settled
from algoscope.core.errors import SubjectError
from algoscope.formats.own_modules.conversion import convert

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from module_zoo import STYLES

LARGE = {"d_vocab": 50_257, "n_ctx": 1024, "d_model": 768, "n_heads": 12, "n_layers": 12}


@settled()
def styles() -> None:
    """Print a row for each style: two parameter counts that differ show what is shared, or a buffer, in the module."""
    print(f"{'style':44} {'parameters':>10} {'ours':>10} {'difference':>10} {'seconds':>8}")
    convert(STYLES["adder"].make())  # what the first conversion of a process loads is not counted
    for name, style in STYLES.items():
        module = style.make()
        start = time.process_time()
        try:
            conversion = convert(module)
        except SubjectError as error:
            print(f"{name:44} {error}")
            continue
        seconds = time.process_time() - start
        theirs, ours = (sum(weight.numel() for weight in m.parameters()) for m in (module, conversion.model))
        print(f"{name:44} {theirs:>10,} {ours:>10,} {conversion.largest_difference:>10.1e} {seconds:>8.2f}")


@settled()
def large() -> None:
    """Print the time and memory for a module of GPT-2 small's size, whose weights are in memory before."""
    convert(STYLES["nanogpt"].make())
    empty = memory("VmRSS")
    module = STYLES["nanogpt"].make(**LARGE)
    size = sum(weight.numel() for weight in module.parameters()) * 4 / 2**20
    Path("/proc/self/clear_refs").write_text("5")  # the largest memory counts from here
    start = time.process_time()
    conversion = convert(module)
    seconds, most = time.process_time() - start, memory("VmHWM") - empty
    print(f"weights {size:,.0f} MiB: {seconds:.1f} s of one core, difference {conversion.largest_difference:.1e}")
    print(f"largest memory, the module's included, {most:,.0f} MiB, {most / size:.1f} times the weights")


def memory(what: str) -> float:
    """Memory of this process in MiB: now (`VmRSS`) or the most so far (`VmHWM`)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(what)) / 2**10


if __name__ == "__main__":
    large() if sys.argv[1:] == ["large"] else styles()
