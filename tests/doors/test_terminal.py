"""The edge of the process: streams that are closed, full or in a code page, terminals of every size, text as data."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import algoscope
from algoscope.core.finding import Finding, ResultTable
from algoscope.core.progress import Bar, say
from algoscope.core.visible import one_line, visible
from algoscope.doors.cli.common import echo, show_json, show_result, show_table

HERE = Path(algoscope.__file__).parent
NASTY = "[/b] [red]x[/red] :smile: \x1b[31m\x9b1m\rz\0 \u202e\udce9 東京 🙂 é"


def in_shell(line: str, cwd: Path | None = None, **environment: str) -> tuple[int, bytes, bytes]:
    """A line of the shell, where `algoscope` is the command: (exit code, standard output, standard error)."""
    setting = os.environ | {"PYTHONPATH": str(HERE.parent)} | environment
    command = line.replace("algoscope", f"{sys.executable} -m algoscope")
    done = subprocess.run(["bash", "-c", command], capture_output=True, env=setting, cwd=cwd, timeout=120)
    return done.returncode, done.stdout, done.stderr


# ---------------------------------------------------------------------- streams


@pytest.mark.long
@pytest.mark.parametrize(
    "command", ["params gpt2", "params gpt2 --json", "lenses", "--help", "", "lens --help", "--version"]
)
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_full_standard_output_is_one_line_and_exit_code_2(command: str, unbuffered: str) -> None:
    code, _, err = in_shell(f"algoscope {command} > /dev/full", PYTHONUNBUFFERED=unbuffered)
    assert (code, err) == (2, b"algoscope: cannot write to standard output: No space left on device\n")


def test_a_closed_standard_output_is_one_line_before_any_work() -> None:
    code, _, err = in_shell("algoscope train add3 >&-")
    assert (code, err) == (2, b"algoscope: standard output is closed: redirect it to a file or to /dev/null\n")


@pytest.mark.parametrize("stderr", ["2>&-", "2>/dev/full"])
def test_a_standard_error_that_takes_nothing_changes_neither_result_nor_exit_code(stderr: str) -> None:
    code, out, _ = in_shell(f"algoscope tasks --json {stderr} <&-")
    assert (code, "addition" in [task["name"] for task in json.loads(out)]) == (0, True)
    assert in_shell(f"algoscope nonsense {stderr}")[0] == 2
    assert in_shell(f"algoscope tasks > /dev/full {stderr}")[0] == 2


def test_progress_never_fails_for_its_stream_and_never_goes_to_standard_output(monkeypatch, capsys) -> None:
    with Path("/dev/full").open("w") as full:
        for stream in (None, full):
            monkeypatch.setattr(sys, "stderr", stream)
            bar = Bar("title", "steps")
            bar.printed -= 100
            bar.advance(1, 2, "loss 1")
            say("a line")
        monkeypatch.undo()
        with pytest.raises(OSError, match="No space"):
            full.flush()
        os.dup2(os.open(os.devnull, os.O_WRONLY), full.fileno())
    assert capsys.readouterr().out == ""


@pytest.mark.long
@pytest.mark.parametrize("encoding", ["cp1252", "ascii:strict", "latin-1"])
def test_a_code_page_shows_what_it_can(encoding: str, tmp_path: Path) -> None:
    code, out, err = in_shell("algoscope runs --runs-dir 東京", cwd=tmp_path, PYTHONIOENCODING=encoding)
    assert (code, err) == (0, b"")
    assert out.startswith(b"no runs in ??")
    code, _, err = in_shell("algoscope 東京", cwd=tmp_path, PYTHONIOENCODING=encoding)
    assert (code, err.count(b"\n"), b"Traceback" in err) == (2, 1, False)


def test_json_is_ascii(capsys: pytest.CaptureFixture) -> None:
    for document in ({"token": NASTY}, Finding("kind", NASTY, {"token": NASTY})):
        show_json(document)
        out = capsys.readouterr().out
        assert out.isascii()
        assert json.loads(out)["token"] == NASTY


# ---------------------------------------------------------------------- data is never markup


def test_no_text_is_read_as_markup_or_obeyed_by_the_terminal(capsys: pytest.CaptureFixture) -> None:
    echo(NASTY)
    show_table(NASTY, [NASTY, "n"], [(NASTY, 3), ("a\nb\tc", 1234)], numeric=["n"])
    show_result(ResultTable(NASTY, (NASTY,), ((NASTY,), ("a\nb\tc",))))
    out = capsys.readouterr().out
    shown = r"[/b] [red]x[/red] :smile: \x1b[31m\x9b1m\rz\x00 \u202e\udce9 東京 🙂 é"
    assert out.count(shown) == 7
    assert out.count("a↵b⇥c") == 2
    assert "1,234" in out
    assert not set(out) & set("\x1b\x9b\r\0\u202e\udce9")
    assert visible("a\nb\tc") == "a\nb\tc"
    assert one_line("a\nb") == "a↵b"


def test_brackets_in_a_path_reach_the_tables(run, monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ALGOSCOPE_RUNS", str(tmp_path / "a[/b]c [red]x[/red]"))
    code, out, _ = run("doctor")
    assert code == 0
    assert "a[/b]c [red]x[/red]" in out


def test_lines_are_written_in_one_place() -> None:
    sources = {path.name: path.read_text() for path in (HERE / "doors" / "cli").glob("*.py")}
    assert [name for name, text in sources.items() if "click.echo" in text] == ["main.py"], "the help of click itself"
    consoles = [path.name for path in HERE.rglob("*.py") if "Console(" in path.read_text()]
    assert sorted(consoles) == ["common.py", "progress.py"]


@pytest.mark.parametrize("columns", ["0", "1", "20", "1000", "x", ""])
@pytest.mark.parametrize("terminal", ["1", ""])
def test_no_width_of_a_terminal_leaves_something_out(columns: str, terminal: str, monkeypatch, capsys) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    if terminal:
        monkeypatch.setenv("FORCE_COLOR", "1")
    words = [f"word{i}" for i in range(40)]
    show_table("a title of several words", [f"column{i}" for i in range(40)], [words, ["x" * 300, *words[1:]]])
    out = capsys.readouterr().out
    assert all(out.count(word) == 2 for word in words[10:])
    assert "x" * 300 in out
    assert "column39" in out
    assert "…" not in out


# ---------------------------------------------------------------------- surroundings


def test_a_working_directory_that_is_gone_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "gone").mkdir()
    code, out, err = in_shell("rmdir ../gone; algoscope runs", cwd=tmp_path / "gone")
    assert (code, out, err.count(b"\n")) == (2, b"", 1)
    assert err.startswith(b"algoscope: the working directory cannot be used")


@pytest.mark.long
def test_warnings_as_errors_stop_no_command(tmp_path: Path) -> None:
    line = "algoscope lens attention planted:induction --input abcab --out a.png"
    code, out, _ = in_shell(line, cwd=tmp_path, PYTHONWARNINGS="error")
    assert code == 0
    assert b"written: a.png" in out
