"""Shared by the commands: common options, shell completion, and tables on the terminal."""

import functools
import json
import shutil
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table as RichTable
from rich.text import Text

from algoscope.core.files import output_path
from algoscope.core.finding import SUFFIXES, Finding, ResultTable
from algoscope.core.progress import say
from algoscope.core.registry import Table
from algoscope.core.visible import one_line, visible
from algoscope.planted.table import PLANTED
from algoscope.runs.paths import run_folders, runs_directory
from algoscope.tasks.table import TASKS

WIDEST = 10**6  # characters of a table that is piped


def out_file(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add `--out FILE` for a finding; a file that cannot be written is refused before the work begins."""

    def checked(ctx: click.Context, param: click.Parameter, value: str | None) -> Path | None:
        return None if value is None else output_path(value, SUFFIXES)

    text = f"Write {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}, by the ending."
    return click.option("--out", metavar="FILE", help=text, callback=checked)(command)


def task_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add `--task SPEC`."""
    text = "The task: a name, NAME?FIELD=VALUE, or a class of your own, FILE.py:CLASS, whose code is run."
    return click.option("--task", metavar="SPEC", shell_complete=names(TASKS), help=text)(command)


def common(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add `--json`, `--quiet` and `--runs-dir`."""
    options = [
        click.option("--json", "as_json", is_flag=True, help="One JSON document on standard output, nothing else."),
        click.option("--quiet", is_flag=True, help="No progress on standard error."),
        click.option(
            "--runs-dir", type=click.Path(), help="Runs directory; else $ALGOSCOPE_RUNS, else ./runs.", default=None
        ),
    ]
    return functools.reduce(lambda wrapped, option: option(wrapped), options, command)


def echo(text: object = "", err: bool = False) -> None:
    """A line of text on standard output or standard error. Commands write their lines here and nowhere else."""
    if err:
        say(str(text))
    else:
        print(visible(text), flush=True)  # noqa: T201


def show_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[Any]], numeric: Sequence[str] = ()) -> None:
    """A table on standard output: as wide as it needs where it is piped, else as wide as the terminal, but never so
    narrow that something is left out. Cells are data: nothing in them is markup.
    """
    table = RichTable(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(Text(one_line(column)), justify="right" if column in numeric else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(f"{cell:,}" if isinstance(cell, int) else one_line(cell)) for cell in row))
    console = Console(width=shutil.get_terminal_size().columns)
    needed = Measurement.get(console, console.options.update(max_width=WIDEST), table)
    if console.is_terminal:
        console.width = max(console.width, needed.minimum)
    else:
        console = Console(width=needed.maximum, no_color=True)
    if title:
        console.print(Text(one_line(title), style="italic"), soft_wrap=True)
    console.print(table)


def show_result(table: ResultTable) -> None:
    """A table of a finding, columns of numbers to the right, with an empty line after it."""
    numeric = [column for column, is_number in zip(table.columns, table.numeric, strict=True) if is_number]
    show_table(table.title, table.columns, table.texts(), numeric)
    echo()


def show_json(document: Any) -> None:
    """One JSON document on standard output, in ASCII: exact in every encoding."""
    text = document.to_json() if isinstance(document, Finding) else json.dumps(document, allow_nan=False)
    print(text, flush=True)  # noqa: T201


def names(table: Table[Any]) -> Callable[..., list[CompletionItem]]:
    """Completion of a table's names, with their summaries where the shell shows them."""

    def complete(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        return [
            CompletionItem(name, help=entry.summary) for name, entry in table.items() if name.startswith(incomplete)
        ]

    return complete


def _run_names(ctx: click.Context) -> list[str]:
    return [path.name for path in run_folders(runs_directory(ctx.params.get("runs_dir")))]


def complete_run(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Names of the runs in the runs directory."""
    return [CompletionItem(name) for name in _run_names(ctx) if name.startswith(incomplete)]


def complete_subject(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """`run:NAME` for every run, `planted:NAME` for every planted model."""
    named = [f"run:{name}" for name in _run_names(ctx)]
    planted = [f"planted:{name}" for name in PLANTED]
    return [
        CompletionItem(name)
        for name in [*named, *planted, "hf:", "file:", "foreign:", "module:"]
        if name.startswith(incomplete)
    ]
