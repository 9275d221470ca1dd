"""`algoscope lens NAME SUBJECT`: one subcommand for each row of the lens table, its options read from the function."""

import inspect
from collections.abc import Sequence
from typing import Any

import click

from algoscope.core.finding import Finding
from algoscope.doors.cli.common import common, complete_subject, show_table
from algoscope.doors.table import PUBLIC
from algoscope.lenses.table import LENSES


class LensGroup(click.Group):
    """The lenses as subcommands; a lens is loaded when it is called or asked for help."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(LENSES)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        return lens_command(name) if name in LENSES else None

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if not args[0].startswith("-") and not ctx.resilient_parsing:
            LENSES[args[0]]  # raises with the known names
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Lenses"):
            formatter.write_dl([(name, entry.summary) for name, entry in LENSES.items()])


@click.group(cls=LensGroup)
def lens() -> None:
    """Look inside a model: `algoscope lens attention run:add3 --input 123+456 --out heads.html`."""


def lens_command(name: str) -> click.Command:
    """The command of one lens: its subject, an option for each of its parameters, `--out`."""
    function = LENSES.load(name)
    parameters = list(inspect.signature(function).parameters.values())[1:]
    options = {p.name: _option(p) for p in parameters if p.name not in ("runs_dir", "progress")}
    watched = "progress" in [p.name for p in parameters]

    @click.command(name, help=LENSES[name].summary[:1].upper() + LENSES[name].summary[1:] + ".")
    @click.argument("subject", shell_complete=complete_subject)
    @click.option("--out", metavar="FILE", help="Write .html, .png, .svg, .json or .csv, by the ending.")
    @common
    def command(subject: str, out: str | None, as_json: bool, quiet: bool, runs_dir: str | None, **chosen: Any) -> None:
        model = PUBLIC.load("open")(subject, runs_dir=runs_dir)
        found: Finding = function(model, **chosen, **({"progress": not quiet} if watched else {}))
        if out is not None:
            found.save(out)
        if as_json:
            click.echo(found.to_json())
        else:
            _show(found, out)

    command.params[1:1] = list(options.values())
    return command


def _option(parameter: inspect.Parameter) -> click.Option:
    """Texts may be repeated (`--input A --input B`); names that have a default are a list (`--sites a,b`)."""
    flag = "--" + parameter.name.replace("_", "-")
    if parameter.annotation in (Sequence[str], str | Sequence[str]):
        if isinstance(parameter.default, tuple) and parameter.default:
            names = ",".join(parameter.default)
            return click.Option([flag], default=names, show_default=True, metavar="NAME,...", callback=_listed)
        needed = parameter.default is parameter.empty
        return click.Option(
            [flag.removesuffix("s"), parameter.name],
            multiple=True,
            metavar="TEXT",
            required=needed,
            help="May be repeated.",
        )
    return click.Option([flag], type=parameter.annotation, default=parameter.default, show_default=True)


def _listed(ctx: click.Context, param: click.Parameter, given: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in given.split(","))


def _show(found: Finding, out: str | None) -> None:
    click.echo(found.claim)
    for panel in found.panels:
        shape = " x ".join(f"{len(axis.labels)} {axis.name}" for axis in panel.axes)
        click.echo(f"  {panel.name}: {shape}, {panel.unit}")
    for table in found.tables:
        numeric = [column for column, is_number in zip(table.columns, table.numeric, strict=True) if is_number]
        show_table(table.title, table.columns, table.texts(), numeric)
    click.echo(f"written: {out}" if out else "see it with --out FILE.html, or take the numbers with --json")
