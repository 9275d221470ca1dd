"""The documentation, executed: what it shows is what happens, what it lists is what there is."""

import doctest
import re
import shlex
import shutil
from pathlib import Path

import pytest

from algoscope.doors.cli.main import COMMANDS
from algoscope.doors.public import PUBLIC
from algoscope.lenses.table import LENSES

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
EXECUTED = [ROOT / "README.md", *sorted((ROOT / "docs/tutorial").glob("*.md"))]
ELSEWHERE = (
    "algoscope demo",
    "make",
    "git",
    "cd",
    "python",
    ". ",
    "eval",
)  # the demo is a fixture; the rest is setting up


@pytest.fixture
def beside_the_demo(demo: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory in which `runs/demo` is a copy of the demo's run."""
    shutil.copytree(demo["run"].path, tmp_path / "runs" / "demo")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ALGOSCOPE_RUNS", raising=False)
    return tmp_path


def consoles(text: str) -> list[tuple[str, str]]:
    """Commands after a `$`, each with the output that is shown below it."""
    found: list[tuple[str, str]] = []
    for block in re.findall(r"```console\n(.*?)```", text, flags=re.DOTALL):
        for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            command, _, shown = part.partition("\n")
            found.append((command.partition("  #")[0].strip(), shown))
    return found


@pytest.mark.parametrize("page", EXECUTED, ids=lambda page: page.name)
def test_examples_do_what_the_page_says(page: Path, beside_the_demo: Path) -> None:
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
        pytest.param(command, shown, id=f"{page.stem}: {command}")
        for page in EXECUTED
        for command, shown in consoles(page.read_text())
        if not command.startswith(ELSEWHERE)
    ],
)
def test_commands_do_what_the_page_says(command: str, shown: str, beside_the_demo: Path, run) -> None:
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
    assert {name for name in COMMANDS if f"algoscope {name}" not in README} == set()
    assert {name for name in PUBLIC if f"ag.{name}(" not in pages and f"`{name}`" not in README} == set()
    assert {name for name in LENSES if f"`{name}`" not in README} == set()


def test_the_file_map_is_the_tree() -> None:
    block = (ROOT / "ARCHITECTURE.md").read_text().split("## The files")[1]
    listed = re.findall(r"^ +([\w.]+\.(?:py|j2)) ", block, flags=re.MULTILINE)
    there = [path.name for path in (ROOT / "src").rglob("*") if path.suffix in (".py", ".j2")]
    assert sorted(listed) == sorted(name for name in there if name != "__init__.py" or "__init__.py" in listed)
