"""The documentation, executed: what it shows is what happens, what it lists is what there is."""

import doctest
import inspect
import re
import shlex
import shutil
from pathlib import Path

import pytest

import algoscope as ag
from algoscope.doors.cli.lens_command import argument_helps
from algoscope.doors.cli.main import COMMANDS
from algoscope.doors.public import PUBLIC
from algoscope.lenses.table import LENSES
from algoscope.tasks.base import Task

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
EXECUTED = [ROOT / "README.md", *sorted((ROOT / "docs/tutorial").glob("*.md"))]
ELSEWHERE = (
    "algoscope demo",
    "algoscope selfcheck",
    "make",
    "git",
    "cd",
    "python",
    ". ",
    "eval",
)  # the demo is a fixture, selfcheck has tests of its own; the rest is setting up


@pytest.fixture
def beside_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A working directory in which there are no runs."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ALGOSCOPE_RUNS", raising=False)


@pytest.fixture
def beside_the_demo(request: pytest.FixtureRequest, tmp_path: Path, beside_an_empty_folder: None) -> None:
    """A working directory in which `runs/demo` is a copy of the demo's run, where the example speaks of it."""
    if request.node.get_closest_marker("trained"):
        shutil.copytree(request.getfixturevalue("demo")["run"].path, tmp_path / "runs" / "demo")


def marks_of(text: str) -> list[pytest.MarkDecorator]:
    return [pytest.mark.trained] if "demo" in text else []


def consoles(text: str) -> list[tuple[str, str]]:
    """Commands after a `$`, each with the output that is shown below it."""
    found: list[tuple[str, str]] = []
    for block in re.findall(r"```console\n(.*?)```", text, flags=re.DOTALL):
        for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            command, _, shown = part.partition("\n")
            found.append((command.partition("  #")[0].strip(), shown))
    return found


@pytest.mark.parametrize(
    "page", [pytest.param(page, marks=marks_of(page.read_text()), id=page.name) for page in EXECUTED]
)
def test_examples_do_what_the_page_says(page: Path, beside_the_demo: None) -> None:
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    blocks = re.findall(r"```python\n(.*?)```", page.read_text(), flags=re.DOTALL)
    examples = doctest.DocTestParser().get_doctest("\n".join(blocks), {}, page.name, str(page), 0)
    assert examples.examples
    said: list[str] = []
    doctest.DocTestRunner(optionflags=flags).run(examples, out=said.append)
    assert not said, "".join(said)


@pytest.mark.parametrize(
    ("command", "shown"),
    [
        pytest.param(command, shown, marks=marks_of(command), id=f"{page.stem}: {command}")
        for page in EXECUTED
        for command, shown in consoles(page.read_text())
        if not command.startswith(ELSEWHERE)
    ],
)
def test_commands_do_what_the_page_says(command: str, shown: str, beside_the_demo: None, run) -> None:
    program, *arguments = shlex.split(command)
    assert program == "algoscope"
    code, out, err = run(*arguments)
    assert code == (1 if "@64" in command else 0), err
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    beginning = shown.strip() + "..."  # a page may show how a long output begins
    assert doctest.OutputChecker().check_output(beginning, out, flags), out


def test_every_link_leads_somewhere() -> None:
    for page in [*PAGES, ROOT / "ARCHITECTURE.md", ROOT / "CHANGELOG.md"]:
        for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()):
            assert target.startswith("http") or (page.parent / target).exists(), f"{page}: {target}"


def test_every_command_and_public_name_is_documented() -> None:
    pages = "\n".join(page.read_text() for page in PAGES)
    assert {name for name in COMMANDS if f"`algoscope {name}`" not in pages} == set()
    assert {name for name in PUBLIC if f"`ag.{name}`" not in pages} == set()
    assert {name for name in LENSES if f"`ag.lenses.{name}`" not in pages} == set()


def test_the_file_map_is_the_tree() -> None:
    block = (ROOT / "ARCHITECTURE.md").read_text().split("## The files")[1]
    listed = re.findall(r"^ +([\w.]+\.(?:py|j2)) ", block, flags=re.MULTILINE)
    there = [path.name for path in (ROOT / "src").rglob("*") if path.suffix in (".py", ".j2")]
    assert sorted(listed) == sorted(name for name in there if name != "__init__.py" or "__init__.py" in listed)


# ---------------------------------------------------------------------- docstrings

OFFERED = {name: PUBLIC.load(name) for name in PUBLIC} | {f"lenses.{name}": LENSES.load(name) for name in LENSES}
CLASSES = {"Subject": ag.Subject, "Run": ag.Run, "Finding": ag.Finding, "Task": Task}
METHODS = {
    f"{owner}.{name}": getattr(kind, name)
    for owner, kind in CLASSES.items()
    for name, member in vars(kind).items()
    if not name.startswith("_") and isinstance(member, classmethod | type(lambda: 0))
}
DOCUMENTED = OFFERED | CLASSES | METHODS


def lacking(name: str, thing: object) -> list[str]:
    """What the docstring of a function or class does not have: its arguments, what it returns, an example."""
    text = inspect.getdoc(thing) or ""
    missing = [] if text else ["a docstring"]
    if name in METHODS:  # their one sentence says what is returned, their signature the shapes
        return missing
    if not inspect.isclass(thing):
        signature = inspect.signature(thing)
        named = [one.name for one in signature.parameters.values() if one.kind is not one.VAR_KEYWORD]
        missing += [
            f"argument {one}" for one in named if one not in ("self", "cls") and one not in argument_helps(thing)
        ]
        returns = signature.return_annotation not in (None, inspect.Signature.empty)
        missing += ["Returns"] if returns and not re.search("^Returns:", text, re.MULTILINE) else []
    without = inspect.isclass(thing) and issubclass(thing, Exception)
    return missing + (["Example"] if not without and ">>> " not in text else [])


@pytest.mark.parametrize("name", DOCUMENTED)
def test_public_functions_say_what_goes_in_and_out(name: str) -> None:
    assert lacking(name, DOCUMENTED[name]) == []
