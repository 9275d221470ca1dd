"""Writes docs/reference.md from the tables: commands, lenses, recipes, studies, tasks, planted models, Python names."""

from collections.abc import Mapping
from pathlib import Path

from algoscope.core.registry import Entry
from algoscope.doors.cli.main import COMMANDS
from algoscope.doors.public import PUBLIC
from algoscope.lenses.table import LENSES
from algoscope.planted.table import PLANTED
from algoscope.recipes.table import RECIPES
from algoscope.tasks.table import TASKS
from algoscope.verdicts.studies.table import STUDIES

PAGE = Path(__file__).parents[1] / "docs" / "reference.md"
BEFORE = """\
# Reference

Written by `python scripts/write_reference.py` from the tables of the package. `algoscope COMMAND --help` says the
options of a command, `help(algoscope.NAME)` shapes, units, errors and an example.

A SUBJECT is `run:NAME`, `run:NAME@STEP` (a checkpoint), `run:NAME?n_digits=50` (the same weights asked another task),
`run:PATH`, `planted:NAME`, `hf:ID_OR_PATH` (a folder here, else the local cache, else the network unless
`HF_HUB_OFFLINE` is set; `?dtype=bfloat16` is its float type, else float32; `?base=FOLDER` the base model of an
adapter), `file:PATH.safetensors` (with its config beside it), `foreign:PATH?task=T`
([a checkpoint of another tool](import.md)) or `module:FILE.py:NAME` ([a PyTorch module of your own](own-model.md), or a
function from tokens to logits; `?weights=PATH`: a file of its weights). In Python a model in memory may stand for a
name.

`--task` asks a SUBJECT another task: `NAME`, `NAME?FIELD=VALUE&FIELD=VALUE` or `FILE.py:CLASS`
([a task of your own](own-task.md)). Code runs only from a file that the command names. Every command takes `--json`
(one document on standard output), `--quiet` and `--help`. Exit codes: 0 done; 1 done, and a verdict does not hold; 2
bad input, in one line; 3 interrupted. Tab completion: `eval "$(_ALGOSCOPE_COMPLETE=bash_source algoscope)"`.
"""


def section(heading: str, before: str, entries: Mapping[str, Entry], name: str) -> str:
    rows = "\n".join(f"| `{name.format(key)}` | {entry.summary} |" for key, entry in entries.items())
    return f"## {heading}\n\n{before}| | |\n|---|---|\n{rows}\n"


def reference() -> str:
    """The page as text."""
    lenses = "Also `algoscope lens NAME SUBJECT`; `--out` takes `.html`, `.png`, `.svg`, `.json`, `.csv`.\n\n"
    sections = (
        section("Commands", "", COMMANDS, "algoscope {}"),
        section("Lenses", lenses, LENSES, "ag.lenses.{}"),
        section("Python names", "", PUBLIC, "ag.{}"),
        section("Recipes", "`algoscope train NAME`, `ag.train(NAME)`.\n\n", RECIPES, "{}"),
        section("Studies", "`algoscope study NAME`, `ag.study(NAME)`.\n\n", STUDIES, "{}"),
        section("Tasks", "", TASKS, "{}"),
        section("Planted models", "Weights set by hand, whose mechanism is known.\n\n", PLANTED, "planted:{}"),
    )
    return "\n".join((BEFORE, *sections))


if __name__ == "__main__":
    PAGE.write_text(reference())
