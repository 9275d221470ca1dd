"""Shared by the commands: common options, shell completion, and tables on the terminal."""

import functools
import json
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import click
from click.shell_completion import CompletionItem
from rich.console import Console
from rich.table import Table as RichTable

from algoscope.core.finding import ResultTable
from algoscope.core.registry import Table
from algoscope.planted.table import PLANTED
from algoscope.runs.paths import run_folders, runs_directory

PIPED_WIDTH = 200


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


def show_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[Any]], numeric: Sequence[str] = ()) -> None:
    """A table on standard output; plain and wide where it is piped."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=PIPED_WIDTH, no_color=True)
    table = RichTable(title=title or None, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, justify="right" if column in numeric else "left")
    for row in rows:
        table.add_row(*(f"{cell:,}" if isinstance(cell, int) else str(cell) for cell in row))
    console.print(table)


def show_result(table: ResultTable) -> None:
    """A table of a finding, columns of numbers to the right, with an empty line after it."""
    numeric = [column for column, is_number in zip(table.columns, table.numeric, strict=True) if is_number]
    show_table(table.title, table.columns, table.texts(), numeric)
    click.echo()


def show_json(document: Any) -> None:
    click.echo(json.dumps(document, allow_nan=False))


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
        CompletionItem(name) for name in [*named, *planted, "hf:", "file:", "foreign:"] if name.startswith(incomplete)
    ]
