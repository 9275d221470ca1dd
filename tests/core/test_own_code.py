"""A file that the user names: what runs, what is found in it, and what is said of one that does not work."""

import subprocess
import sys
from pathlib import Path

import pytest

from algoscope.core.errors import AlgoscopeError, OwnCodeError, UnknownNameError
from algoscope.core.own_code import load_named, running


def written(folder: Path, text: str, name: str = "mine.py") -> str:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(text)
    return str(folder / name)


def test_the_object_comes_with_its_file_its_name_and_the_hash_of_its_content(tmp_path: Path) -> None:
    file = written(tmp_path, "class Outer:\n    class Inner: x = 3\nanswer = 42")
    value, code = load_named(f"{file}:answer", "a number")
    assert (value, code.path, code.name) == (42, Path(file), "answer")
    listed = subprocess.run(["sha256sum", file], capture_output=True, text=True, check=True).stdout
    assert code.sha256 == listed.split()[0]
    assert load_named(f"{file}:Outer.Inner", "a class")[0].x == 3  # type: ignore[attr-defined]


@pytest.mark.parametrize("folder", ["a:b", "with space", "p@3?x=1", "ünï", "."])
def test_a_path_may_have_anything_in_it(tmp_path: Path, folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    file = written(tmp_path / folder, "x = __file__")
    assert load_named(f"{file}:x", "a path")[0] == file.replace("/./", "/")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert load_named(f"~/{folder}/mine.py:x", "a path")[0] == file.replace("/./", "/")


def test_a_file_runs_once_for_each_content(tmp_path: Path) -> None:
    file = written(tmp_path, "thing = object()")
    first = load_named(f"{file}:thing", "a thing")[0]
    assert load_named(f"{file}:thing", "a thing")[0] is first
    written(tmp_path, "thing = object()  # changed")
    assert load_named(f"{file}:thing", "a thing")[0] is not first


def test_files_of_one_name_and_their_neighbours_are_kept_apart(tmp_path: Path) -> None:
    for name in ("one", "two"):
        written(tmp_path / name, f"NAME = {name!r}", "beside_mine.py")
    files = [
        written(tmp_path / name, "from beside_mine import NAME\ndef late():\n    import beside_mine\n    return "
        "beside_mine.NAME") for name in ("one", "two")
    ]  # fmt: skip
    assert [load_named(f"{file}:NAME", "a name")[0] for file in files] == ["one", "two"]
    for file in files:
        late, code = load_named(f"{file}:late", "a function")
        with running(code.path):
            assert late() == code.path.parent.name  # type: ignore[operator]


def test_nothing_is_left_on_the_path_and_nothing_is_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["algoscope", "certify"])
    before = list(sys.path)
    file = written(tmp_path, "import sys\nprint('hello')\nx = sys.argv")
    assert load_named(f"{file}:x", "arguments")[0] == [file]
    out, err = capsys.readouterr()
    assert (out, err.strip(), sys.path, sys.argv) == ("", "hello", before, ["algoscope", "certify"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def f(:\n", "mine.py cannot be run, line 1: SyntaxError: "),
        ("x = 1\n\nraise KeyError('k')", "mine.py cannot be run, line 3: KeyError: 'k'"),
        ("import sys\nsys.exit(3)", "mine.py cannot be run, line 2: SystemExit: 3"),
        ("import no_such_module_here", "line 1: ModuleNotFoundError: No module named"),
        ("from .beside import x", "line 1: ImportError: attempted relative import"),
        ("import argparse\nargparse.ArgumentParser().parse_args()\nx = y", "line 3: NameError"),
        ("import algoscope as ag\nag.Addition(n_digits=0)", "line 2: ConfigError: "),
        ("raise ValueError('one\\ntwo' + 5000 * 'x')", "line 1: ValueError: one two"),
        ("class E(Exception):\n    def __str__(self): raise E\nraise E", "line 3: E"),
        ("\0", "cannot be run"),
    ],
)
def test_a_file_that_cannot_be_run_is_one_line(tmp_path: Path, text: str, message: str) -> None:
    file, before = written(tmp_path, text), set(sys.modules)
    with pytest.raises(OwnCodeError) as told:
        load_named(f"{file}:x", "a task")
    assert message in str(told.value)
    assert len(str(told.value)) <= 1200
    assert len(str(told.value).splitlines()) == 1
    assert not [name for name in set(sys.modules) - before if name.startswith("mine")]


def test_an_error_in_a_file_beside_it_is_said_with_the_line_that_leads_there(tmp_path: Path) -> None:
    written(tmp_path, "1 / 0", "beside_broken.py")
    written(tmp_path, "\n\ndef (", "beside_unreadable.py")
    for neighbour, said in [("beside_broken", "line 2: ZeroDivision"), ("beside_unreadable", "line 3 of beside_unr")]:
        file = written(tmp_path, f"# first\nimport {neighbour}")
        with pytest.raises(OwnCodeError, match=said):
            load_named(f"{file}:x", "a task")


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("mine.py", r"'mine.py' does not name a task: write mine.py:NAME"),
        ("mine.py:", r"does not name a task: write mine.py:NAME"),
        (":Mine", r"does not name a task: write FILE.py:NAME"),
        ("mine.py:a-b", r"does not name a task"),
        ("mine.py:a..b", r"does not name a task"),
        ("mine:Mine", r"no file of Python, whose name ends in .py: did you mean mine.py:Mine"),
        ("mine.txt:Mine", r"no file of Python, whose name ends in .py: write FILE.py:Mine"),
        ("there.py:Mine", r"cannot read there.py: it is not there"),
        ("folder.py:Mine", r"cannot read folder.py: it is a folder"),
        ("mine.py:Mime", r"unknown name in mine.py 'Mime': did you mean 'Mine'\? known: Mine"),
        ("mine.py:Mine.nothing", r"unknown name in mine.py 'Mine.nothing'"),
        ("mine.py:number", r"mine.py:number is an int, not a task; known in this file: Mine$"),
        ("mine.py:Path", r"mine.py:Path is a class, not a task; known in this file: Mine$"),
        ("a\0.py:Mine", r"NUL"),
    ],
)
def test_an_address_that_names_nothing_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, address: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.py").mkdir()
    written(tmp_path, "from pathlib import Path\nclass Mine: is_task = True\nnumber = 3\n_hidden = 4")
    with pytest.raises(AlgoscopeError, match=message):
        load_named(address, "a task", lambda value: hasattr(value, "is_task"))


def test_what_is_known_are_the_names_of_the_file_itself(tmp_path: Path) -> None:
    file = written(tmp_path, "from pathlib import Path\nimport sys\nclass Mine: pass\ndef make(): pass")
    with pytest.raises(UnknownNameError, match=r"known: Mine, make$"):
        load_named(f"{file}:Other", "a model")
