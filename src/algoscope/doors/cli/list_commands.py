"""Commands that list recipes, tasks and lenses. Only `recipes NAME` loads PyTorch."""

from typing import Any

import click

from algoscope.core.registry import Table
from algoscope.doors.cli.common import common, echo, names, show_json, show_table
from algoscope.lenses.table import LENSES
from algoscope.recipes.table import RECIPES
from algoscope.tasks.table import TASKS


def _list(table: Table[Any], as_json: bool) -> None:
    rows = [(name, entry.summary) for name, entry in table.items()]
    if as_json:
        show_json([{"name": name, "summary": summary} for name, summary in rows])
    else:
        show_table("", [table.kind, "summary"], rows)


@click.command()
@click.argument("recipe", required=False, shell_complete=names(RECIPES))
@common
def recipes(recipe: str | None, as_json: bool, quiet: bool, runs_dir: str | None) -> None:
    """List the recipes; with a RECIPE, print its complete config: the fields that --set takes."""
    if recipe is None:
        _list(RECIPES, as_json)
    elif as_json:
        show_json(RECIPES.load(recipe)().model_dump(mode="json"))
    else:
        echo(RECIPES.load(recipe)().model_dump_json(indent=2))


@click.command()
@common
def tasks(as_json: bool, quiet: bool, runs_dir: str | None) -> None:
    """List the tasks."""
    _list(TASKS, as_json)
    if not as_json:
        echo("a class of your own: --task FILE.py:CLASS")


@click.command()
@common
def lenses(as_json: bool, quiet: bool, runs_dir: str | None) -> None:
    """List the lenses."""
    _list(LENSES, as_json)
