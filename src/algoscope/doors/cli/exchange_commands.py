"""Commands that convert weights: import, export, merge."""

from pathlib import Path

import click

from algoscope.doors import public
from algoscope.doors.cli.common import common, complete_subject, echo, names, show_json, show_table, task_option
from algoscope.doors.cli.runs_commands import ended, next_command, parse_settings
from algoscope.runs.summary import RunSummary
from algoscope.tasks.table import TASKS


@click.command("import")
@click.argument("file", type=click.Path())
@click.option(
    "--task",
    required=True,
    metavar="SPEC",
    shell_complete=names(TASKS),
    help="The task that it was trained on: a name, NAME?FIELD=VALUE, or a class of your own, FILE.py:CLASS.",
)
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="FIELD=VALUE",
    help="A field of the task (p=59), model.FIELD=VALUE, or how weights are to be read: weights.qkv=per-head.",
)
@click.option(
    "--layout",
    metavar="NAME",
    help="Orientation of its matrices, where names and shapes leave it open: transformerlens, grokking,  "
    "transformerlens-current or transformerlens-gpt2.",
)
@click.option("--act", metavar="NAME", help="Its activation function.  [default: by layout]")
@click.option("--causal/--no-causal", default=None, help="Is attention causal?  [default: as a stored mask, else yes]")
@click.option("--name", help="Name of the run.  [default: that of the file]")
@common
def import_(
    file: str,
    task: str,
    settings: tuple[str, ...],
    layout: str | None,
    act: str | None,
    causal: bool | None,
    name: str | None,
    as_json: bool,
    quiet: bool,
    runs_dir: str | None,
) -> None:
    """Make a run folder from another tool's weights, and print what was inferred and what was assumed.

    FILE is .safetensors, .npz, or a state dictionary saved with torch.save, with names of any usual habit. A config in
    it, or in a .json file beside it, is read too. What neither shows is settled by the answers to the task, assumed and
    listed, or asked for.
    """
    run = public.import_weights(
        file,
        task,
        settings=parse_settings(settings),
        layout=layout,
        act=act,
        causal=causal,
        name=name,
        runs_dir=runs_dir,
    )
    summary: RunSummary = run.summary
    if as_json:
        show_json(ended(run))
        return
    assert summary.imported is not None
    shown = [(row.what, "-" if row.value is None else str(row.value), row.how) for row in summary.imported.account]
    show_table("", ["what", "value", "how"], shown)
    for line in summary.imported.left_out:
        echo(f"left out: {line}")
    echo(
        f"{run.path}: {summary.parameters:,} parameters, right on {summary.test_accuracy:.2%} of the inputs that "
        f"were tried; next: {next_command(str(run.path))}"
    )


@click.command()
@click.argument("subject", shell_complete=complete_subject)
@task_option
@click.option("--to", required=True, metavar="FORMAT", help="transformerlens, huggingface or onnx.")
@click.option("--out", required=True, type=click.Path(), metavar="PATH", help="A file, or a folder for huggingface.")
@click.option("--naming", metavar="NAME", help="Of transformerlens: legacy or current.  [default: legacy]")
@common
def export(
    subject: str,
    task: str | None,
    to: str,
    out: str,
    naming: str | None,
    as_json: bool,
    quiet: bool,
    runs_dir: str | None,
) -> None:
    """Write SUBJECT in another tool's format, with the same logits."""
    model = public.open(subject, task=task, runs_dir=runs_dir)
    written: tuple[Path, ...] = public.export(model, to, out, naming=naming)
    names_tokens = any(path.name.startswith("tokenizer") for path in written) if to == "huggingface" else model.has_task
    if as_json:
        show_json({"files": [str(path) for path in written]})
    else:
        left = "" if names_tokens else "; its tokenizer is not among them"
        echo(f"written: {', '.join(map(str, written))}{left}")


@click.command()
@click.argument("subject", shell_complete=complete_subject)
@task_option
@click.option("--name", help="Name of the run.  [default: NAME-merged]")
@common
def merge(subject: str, task: str | None, name: str | None, as_json: bool, quiet: bool, runs_dir: str | None) -> None:
    """Write SUBJECT, a run with LoRA updates or low-rank factors, as a run with full matrices and the same logits."""
    run = public.merge(public.open(subject, task=task, runs_dir=runs_dir), name=name, runs_dir=runs_dir)
    summary: RunSummary = run.summary
    if as_json:
        show_json(ended(run))
    else:
        echo(
            f"{run.path}: {summary.parameters:,} parameters in full matrices, right on "
            f"{summary.test_accuracy:.2%} of the inputs that were tried; next: {next_command(str(run.path))}"
        )
