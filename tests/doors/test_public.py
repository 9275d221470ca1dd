"""What the package offers is what an editor sees: the imports of type checkers and the tables agree."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import algoscope
from algoscope.core.registry import Table
from algoscope.doors.public import PUBLIC, PUBLIC_LENSES

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "algoscope"


def promised(path: Path) -> dict[str, str]:
    """The names in the block that only type checkers read, as `module:attribute`; not those that are merely aliased."""
    tree = ast.parse(path.read_text())
    block = next(n for n in tree.body if isinstance(n, ast.If) and getattr(n.test, "id", "") == "TYPE_CHECKING")
    imported, kept, aliases = {}, set(), {}
    for node in block.body:
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                imported[alias.name] = f"{node.module}:{alias.name}"
                kept |= {alias.name} if alias.asname else set()
        elif isinstance(node, ast.Assign):
            aliases[node.targets[0].id] = node.value.id
    return {name: imported[name] for name in kept} | {name: imported[of] for name, of in aliases.items()}


@pytest.mark.parametrize(("file", "table"), [("doors/public.py", PUBLIC), ("lenses/__init__.py", PUBLIC_LENSES)])
def test_what_a_type_checker_reads_is_what_is_loaded(file: str, table: Table) -> None:
    assert promised(SOURCE / file) == {name: entry.target for name, entry in table.items()}


def test_a_type_checker_sees_signatures_and_misspelt_names(tmp_path: Path) -> None:
    lines = ["import algoscope as ag", "reveal_type(ag.certify)", "reveal_type(ag.open)", "reveal_type(ag.Run.find)"]
    lines += ["reveal_type(ag.lenses.roles)", "reveal_type(ag.lenses.progress)", "ag.certyfi"]
    (tmp_path / "user.py").write_text("\n".join(lines))
    command = [sys.executable, "-m", "mypy", "--config-file", str(ROOT / "pyproject.toml"), str(tmp_path / "user.py")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    revealed = [line.partition('Revealed type is "')[2] for line in done.stdout.splitlines() if "Revealed" in line]
    assert len(revealed) == 5, done.stdout + done.stderr
    assert all(text.startswith("def (") for text in revealed), revealed
    assert "per_class: int | None" in revealed[0]
    assert revealed[1].endswith('Subject"')
    assert 'Module has no attribute "certyfi"' in done.stdout


def test_every_name_loads_and_another_is_an_attribute_error() -> None:
    assert all(getattr(algoscope, name) is not None for name in algoscope.__all__)
    assert all(callable(getattr(algoscope.lenses, name)) for name in PUBLIC_LENSES)
    with pytest.raises(AttributeError, match="certyfi"):
        algoscope.certyfi  # noqa: B018
    with pytest.raises(AttributeError, match="no lens 'role'; it has answers"):
        algoscope.lenses.role  # noqa: B018
