"""Every number of the README comes from a file that a command wrote, or from the code."""

import json
import re
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import algoscope as ag
from algoscope.recipes.addition import add3

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
BENCHMARKS = (ROOT / "docs" / "benchmarks.md").read_text()


def cell(section: str, row: str, column: str) -> str:
    """A cell of the first table of a section of docs/benchmarks.md, without its spread and its bold."""
    text = BENCHMARKS.split(f"## {section}")[1].split("\n## ")[0]
    table = re.search(r"(?:^\|.*\n)+", text, flags=re.MULTILINE).group()
    lines = [line.strip("|").split("|") for line in table.splitlines()]
    heading = [name.strip() for name in lines[0]]
    (at,) = (i for i, name in enumerate(heading) if name.startswith(column))
    (found,) = (line for line in lines[2:] if line[0].strip().startswith(row))
    return re.sub(r" \(.*\)$", "", found[at].strip()).strip("*")


def sweeps(tokens: int) -> str:
    """The smallest and the largest median speed-up over the sweeps at GPT-2 small's shape."""
    rows = re.findall(rf"^\| GPT-2 small \| {tokens} \| (.*)$", BENCHMARKS, flags=re.MULTILINE)
    cells = [row.split(" | ") for row in rows]
    times = [row[3].split(" (")[0] for row in cells if not row[0].startswith(("logit lens", "forward"))]
    return f"{min(times, key=float)} to {max(times, key=float)}"


def expected() -> dict[str, str]:
    claim = json.loads((ROOT / "docs" / "results" / "selfcheck.json").read_text())["claim"]
    hits, alarms, trials = re.fullmatch(r"(\d+ of \d+) planted .*, (\d+) false alarms in ([\d,]+) .*", claim).groups()
    certified, start = "Time to a certified adder (P1)", "Start-up (P6)"
    return {
        "seeds of `add3` that end right on all 1,000,000 sums": cell(certified, "`add3`", "seeds"),
        "seconds of training on one thread, median": cell(certified, "`add3`", "seconds"),
        "times faster than the reference recipe's first 100 % on its test pairs": cell(certified, "`add3`", "times"),
        "models a minute, 32 seeds trained together": cell("Models per minute (P2)", "32", "models"),
        "seconds to certify all 1,000,000 sums, 4 cores": cell(
            "Certification of all 1,000,000 sums", "4", "`certify`, s"
        ),
        "patching sweeps at GPT-2 small's shape, 15 tokens: times faster than TransformerLens 4.3.0": sweeps(15),
        "the same at 64 tokens": sweeps(64),
        "planted mechanisms that the lenses find": hits,
        "false alarms on shuffled and random models": f"{alarms} of {trials}",
        "milliseconds of `import algoscope` and of `algoscope --help`": " and ".join(
            cell(start, row, "milliseconds") for row in ("`import algoscope`", "`algoscope --help`")
        ),
    }


def test_the_table_of_numbers_is_what_the_commands_wrote() -> None:
    table = README.split("## Numbers")[1].split("\n## ")[0]
    rows = re.findall(r"^\| (.+?) \| (.+?) \| \[", table, flags=re.MULTILINE)
    assert dict(rows) == expected()


def test_every_other_number_is_one_of_the_model_or_the_task() -> None:
    known = {f"{ag.params('add3')['total']:,}", f"{add3().task.domain_size:,}"}
    prose = re.sub(r"```.*?```", "", README.split("## Numbers")[0], flags=re.DOTALL)
    assert set(re.findall(r"\d{1,3}(?:,\d{3})+", prose)) <= known


def test_the_reference_is_written_from_the_tables() -> None:
    writing = spec_from_file_location("write_reference", ROOT / "scripts" / "write_reference.py")
    module = module_from_spec(writing)
    writing.loader.exec_module(module)
    assert (ROOT / "docs" / "reference.md").read_text() == module.reference(), "run python scripts/write_reference.py"
