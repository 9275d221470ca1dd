"""What a user waits for before anything happens: the import, the help."""

import subprocess
import sys

import pytest

HEAVY = ("torch", "numpy", "plotly", "scipy", "pydantic", "jinja2")


def loaded_by(code: str) -> list[str]:
    """Heavy modules that a fresh interpreter has loaded after running the code."""
    after = f"{code}\nimport sys\nprint(*[m for m in {HEAVY!r} if m in sys.modules], file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", after], capture_output=True, text=True, check=True)
    return done.stderr.split()


def test_import_loads_nothing_heavy() -> None:
    assert loaded_by("import algoscope") == []


def test_listing_names_loads_nothing_heavy() -> None:
    assert loaded_by("import algoscope; dir(algoscope); dir(algoscope.lenses)") == []


@pytest.mark.parametrize("args", [["--help"], ["--version"], ["recipes"], ["lenses"]])
def test_command_line_answers_without_torch(args: list[str]) -> None:
    code = f"from algoscope.doors.cli.main import main\ntry: main({args!r})\nexcept SystemExit as e: assert not e.code"
    assert "torch" not in loaded_by(code)


def test_this_test_can_fail() -> None:
    assert loaded_by("import algoscope; algoscope.Finding") != []
