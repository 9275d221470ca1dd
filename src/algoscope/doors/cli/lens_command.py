"""`algoscope lens NAME SUBJECT`: a subcommand for each lens, its options read from the signature and the docstring.

`patch` and `ablate` are short for `lens patch` and `lens ablate`.
"""

import inspect
import re
import types
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import click

from algoscope.core.finding import Finding
from algoscope.doors import public
from algoscope.doors.cli.common import common, complete_subject, echo, out_file, show_json, show_result, task_option
from algoscope.doors.public import PUBLIC_LENSES as LENSES

PROVIDED = ("runs_dir", "progress", "measures", "targets", "align")  # filled in by the command, or no text
SHORT = ("patch", "ablate")


class LensGroup(click.Group):
    """The lenses as subcommands; a lens is imported when it is called or its help is shown."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(LENSES)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        name = _with_underscores(name)
        return lens_command(name) if name in LENSES else None

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if not args[0].startswith("-") and _with_underscores(args[0]) not in LENSES and not ctx.resilient_parsing:
            LENSES[args[0]]  # raises with the known names
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Lenses"):
            formatter.write_dl([(name, entry.summary) for name, entry in LENSES.items()])


def _with_underscores(name: str) -> str:
    """The name of a lens that may be written with hyphens, as options are."""
    return name if name in LENSES else name.replace("-", "_")


@click.group(cls=LensGroup)
def lens() -> None:
    """Analyse a model: `algoscope lens attention run:add3 --input 123+456 --out heads.html`."""


def __getattr__(name: str) -> click.Command:
    if name in SHORT:  # built when it is called: its options are those of the lens, which loads PyTorch
        return lens_command(name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def lens_command(name: str) -> click.Command:
    """The command of one lens: its subject, an option for each of its parameters, `--out`."""
    name = LENSES.current(name)
    function = LENSES.load(name)
    parameters = list(inspect.signature(function).parameters.values())[1:]
    helps = argument_helps(function)
    options = {p.name: option_of(p, helps.get(p.name, "")) for p in parameters if p.name not in PROVIDED}
    renamed: dict[str, str] = getattr(function, "renamed", {})
    watched = "progress" in [p.name for p in parameters]

    @click.command(name, help=_sentence(LENSES[name].summary))
    @click.argument("subject", shell_complete=complete_subject)
    @task_option
    @out_file
    @common
    def command(
        subject: str,
        task: str | None,
        out: Path | None,
        as_json: bool,
        quiet: bool,
        runs_dir: str | None,
        **chosen: Any,
    ) -> None:
        for old, new in renamed.items():  # the function accepts both names, and warns about the former
            del chosen[old if chosen[old] in (None, ()) else new]
        model = public.open(subject, task=task, runs_dir=runs_dir)
        finding: Finding = function(model, **chosen, **({"progress": not quiet} if watched else {}))
        if out is not None:
            finding.save(out)
        if as_json:
            show_json(finding)
        else:
            _show(finding, out)

    command.params[1:1] = [*options.values(), *(_hidden(old, options[new]) for old, new in renamed.items())]
    return command


# ---------------------------------------------------------------------- options from signatures


def option_of(parameter: inspect.Parameter, description: str) -> click.Option:
    """The option that a parameter becomes.

    Texts may be repeated (`--input A --input B`), names that have a default are a comma-separated list (`--sites a,b`),
    literals are choices, a bool is a flag with its negation. An omitted option leaves the parameter's default.
    """
    flag = "--" + parameter.name.replace("_", "-")
    kinds = [kind for kind in _members(parameter.annotation) if kind is not type(None)]
    required = parameter.default is parameter.empty
    default = None if required else parameter.default
    shared: dict[str, Any] = {"help": _sentence(description) or None, "required": required}
    if any(get_origin(kind) in (Sequence, list, tuple) for kind in kinds):
        if isinstance(default, tuple) and default:
            listed = {"default": ",".join(default), "show_default": True, "metavar": "NAME,...", "callback": _listed}
            return click.Option([flag], **shared | listed)
        shared["help"] = " ".join([shared["help"] or "", "May be repeated."]).strip()
        shared["callback"] = lambda ctx, param, value: value or (() if required else default)
        return click.Option([flag.removesuffix("s"), parameter.name], multiple=True, metavar="TEXT", **shared)
    choices = [choice for kind in kinds if get_origin(kind) is Literal for choice in get_args(kind)]
    if choices and str in kinds:
        kind: Any = str
        shared["metavar"] = "|".join([*choices, "FILE.py:NAME"])
    elif choices:
        kind = click.Choice(list(map(str, choices)))
    elif bool in kinds:
        flag, kind = f"{flag}/--no-{flag.removeprefix('--')}", bool
    else:
        kind = next((kind for kind in (str, int, float) if kind in kinds), Path if kinds == [Path] else str)
    return click.Option([flag, parameter.name], type=kind, default=default, show_default=default is not None, **shared)


def _members(annotation: Any) -> tuple[Any, ...]:
    """The members of a union type without what is said about them: `Count | None` as (int, NoneType)."""
    if get_origin(annotation) is Annotated:
        return _members(get_args(annotation)[0])
    several = get_origin(annotation) in (Union, types.UnionType)
    return sum(map(_members, get_args(annotation)), ()) if several else (annotation,)


def _listed(ctx: click.Context, param: click.Parameter, value: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in value.split(","))


def _hidden(former: str, option: click.Option) -> click.Option:
    """The option under its former name."""
    flag = "--" + former.replace("_", "-")
    if option.multiple:
        return click.Option([flag.removesuffix("s"), former], multiple=True, hidden=True)
    callback = None if option.callback is None else lambda *where: where[-1] and _listed(*where)
    return click.Option([flag, former], type=option.type, callback=callback, hidden=True)


def argument_helps(function: Callable[..., Any]) -> dict[str, str]:
    """The first sentence about each argument in the `Args:` section of a docstring; empty without that section."""
    section = re.search(r"^Args:\n((?: .*\n|\n)+)", (inspect.getdoc(function) or "") + "\n", re.MULTILINE)
    entries = re.findall(r"^    ([\w, ]+): (.*(?:\n {5,}.*)*)", section[1] if section else "", re.MULTILINE)
    sentences = [
        (names, re.split(r"(?<=[^.])\.(?:\s|$)", " ".join(text.split()), maxsplit=1)[0]) for names, text in entries
    ]
    return {name.strip(): text for names, text in sentences for name in names.split(",")}


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + ("." if text else "")


def _show(finding: Finding, out: Path | None) -> None:
    echo(finding.claim)
    for table in finding.tables:
        show_result(table)
    for panel in finding.panels:
        shape = " x ".join(f"{len(axis.labels)} {axis.name}" for axis in panel.axes)
        echo(f"  {panel.name}: {shape}, {panel.unit}")
    echo(f"written: {out}" if out is not None else "figures: --out FILE.html; numbers: --json")
