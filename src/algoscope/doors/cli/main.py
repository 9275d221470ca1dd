"""The `algoscope` command: a table of subcommands, each loaded only when it is called.

Standard output carries the result (with `--json` one JSON document and nothing else), standard error the progress and
the one line of an error. Exit codes: 0 success, 1 success but a verdict does not hold, 2 bad input, 3 interrupted.
"""

import io
import os
import sys
import warnings
from collections.abc import Callable
from contextlib import redirect_stdout
from functools import partial
from pathlib import Path
from typing import Any

import click

from algoscope.core.errors import AlgoscopeError
from algoscope.core.progress import say
from algoscope.core.registry import Entry, Table
from algoscope.core.renaming import RenamedWarning
from algoscope.version import __version__

COMMANDS = Table(
    "command",
    {
        "demo": Entry(
            "algoscope.doors.cli.model_commands:demo", "train, certify, analyse and report the default model"
        ),
        "train": Entry("algoscope.doors.cli.runs_commands:train", "train a recipe into a run folder"),
        "runs": Entry("algoscope.doors.cli.runs_commands:runs", "list, show and remove runs"),
        "certify": Entry(
            "algoscope.doors.cli.model_commands:certify", "count every input that a model answers wrongly"
        ),
        "lens": Entry("algoscope.doors.cli.lens_command:lens", "analyse a model with one lens"),
        "patch": Entry("algoscope.doors.cli.lens_command:patch", "activation patching between two inputs"),
        "ablate": Entry("algoscope.doors.cli.lens_command:ablate", "ablate each component and measure the cost"),
        "report": Entry("algoscope.doors.cli.model_commands:report", "write one offline page about a model"),
        "generate": Entry("algoscope.doors.cli.model_commands:generate", "answer a prompt, token by token"),
        "params": Entry("algoscope.doors.cli.model_commands:params", "count parameters by component"),
        "import": Entry("algoscope.doors.cli.exchange_commands:import_", "make a run from another tool's weights"),
        "export": Entry("algoscope.doors.cli.exchange_commands:export", "write a model for another tool"),
        "merge": Entry(
            "algoscope.doors.cli.exchange_commands:merge", "write LoRA updates or low-rank factors as full matrices"
        ),
        "recipes": Entry("algoscope.doors.cli.list_commands:recipes", "list the recipes"),
        "tasks": Entry("algoscope.doors.cli.list_commands:tasks", "list the tasks"),
        "lenses": Entry("algoscope.doors.cli.list_commands:lenses", "list the lenses"),
        "study": Entry("algoscope.doors.cli.study_command:study", "a controlled comparison: one table, one figure"),
        "census": Entry("algoscope.doors.cli.census_command:census", "compare many seeds of one recipe"),
        "selfcheck": Entry("algoscope.doors.cli.check_commands:selfcheck", "the lenses on models of known mechanism"),
        "doctor": Entry("algoscope.doors.cli.check_commands:doctor", "versions, device, threads, what is missing"),
    },
)


class LazyGroup(click.Group):
    """A group whose commands are rows of a table; help prints the summaries without loading a command."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        return COMMANDS.load(name) if name in COMMANDS else None

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if not name.startswith("-") and name not in COMMANDS and not ctx.resilient_parsing:
            COMMANDS[name]  # raises with the known names
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, entry.summary) for name, entry in COMMANDS.items()])


@click.command(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="algoscope")
def cli() -> None:
    """Train small transformers on algorithmic tasks, analyse them with lenses, and certify what they learned.

    A model is named run:NAME, run:NAME@STEP, run:PATH, planted:NAME, hf:ID_OR_PATH, file:PATH.safetensors,
    foreign:PATH?task=T or module:FILE.py:NAME.
    Exit codes: 0 success; 1 success, but a verdict does not hold; 2 bad input; 3 interrupted.
    Tab completion: eval "$(_ALGOSCOPE_COMPLETE=bash_source algoscope)" (or zsh_source, fish_source).
    """


class OutputError(Exception):
    """Standard output that does not take what is written to it."""

    def __init__(self, error: OSError) -> None:
        super().__init__(error.strerror or str(error))
        self.reader_left = isinstance(error, BrokenPipeError)  # as with `| head`


class Output:
    """Standard output whose errors are told from those of other files."""

    def __init__(self, stream: Any) -> None:
        self.stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    @property
    def buffer(self) -> "Output":
        return Output(self.stream.buffer)

    def write(self, text: str | bytes) -> int:
        try:
            written: int = self.stream.write(text)
        except OSError as error:
            raise OutputError(error) from error
        return written

    def flush(self) -> None:
        try:
            self.stream.flush()
        except OSError as error:
            raise OutputError(error) from error


def main(args: list[str] | None = None) -> Any:
    """Run the command line and exit with its code."""
    try:
        check_surroundings()
        output: Any = Output(sys.stdout)
        with redirect_stdout(output):
            code = _command(args)
            output.flush()
    except AlgoscopeError as error:
        code = _fail(str(error), error.exit_code)
    except OutputError as error:
        code = 0 if error.reader_left else _fail(f"cannot write to standard output: {error}", 2)
    for stream in (sys.stdout, sys.stderr):
        if stream is not None and _is_stuck(stream):  # or Python would try again when it ends, and fail
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    sys.exit(code)


def _command(args: list[str] | None) -> int:
    """Run one command: its exit code."""
    try:
        with warnings.catch_warnings():
            if any(option.startswith("error") for option in sys.warnoptions):  # libraries warn where nothing is wrong
                warnings.simplefilter("default")
            warnings.simplefilter("always", RenamedWarning)
            warnings.showwarning = partial(_warn, warnings.showwarning)
            code = cli.main(args, prog_name="algoscope", standalone_mode=False)
        return code if isinstance(code, int) else 0
    except AlgoscopeError as error:
        return _fail(str(error), error.exit_code)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message())
        return 2
    except click.ClickException as error:
        return _fail(error.format_message(), 2)
    except (click.Abort, KeyboardInterrupt):
        return _fail("interrupted", 3)


def check_surroundings() -> None:
    """Make the standard streams fit for text of every kind. Raises AlgoscopeError where no command can work."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes this number, so that no file of ours does
    if sys.stderr is None:
        sys.stderr = Path(os.devnull).open("w")  # noqa: SIM115  # stays open
    if sys.stdout is None:
        raise AlgoscopeError("standard output is closed: redirect it to a file or to /dev/null")
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # code pages cannot show every character
    try:
        Path.cwd()
    except OSError as error:
        raise AlgoscopeError(f"the working directory cannot be used ({error.strerror}): change to another") from error


def _is_stuck(stream: Any) -> bool:
    """Whether what was written to a stream cannot leave it."""
    try:
        stream.flush()
    except OSError:
        return True
    return False


def _warn(otherwise: Callable[..., None], message: Warning | str, category: type[Warning], *where: Any) -> None:
    """Warnings about former names are one line on standard error; other warnings are shown as usual."""
    if issubclass(category, RenamedWarning):
        say(f"algoscope: {message}")
    else:
        otherwise(message, category, *where)


def _fail(message: str, code: int) -> int:
    say("algoscope: " + " ".join(message.split()))
    return code
