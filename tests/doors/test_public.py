"""What the package offers is what an editor sees: the imports of type checkers and the tables agree.

That a type checker sees signatures is in `tests/public_types.py`, which `make check` reads.
"""

import ast
from pathlib import Path

import pytest

import algoscope
from algoscope.core.registry import Table
from algoscope.doors.public import PUBLIC, PUBLIC_LENSES

SOURCE = Path(__file__).parents[2] / "src" / "algoscope"


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


def test_every_name_loads_and_another_is_an_attribute_error() -> None:
    assert all(getattr(algoscope, name) is not None for name in algoscope.__all__)
    assert all(callable(getattr(algoscope.lenses, name)) for name in PUBLIC_LENSES)
    with pytest.raises(AttributeError, match="certyfi"):
        algoscope.certyfi  # noqa: B018
    with pytest.raises(AttributeError, match="no lens 'role'; it has answers"):
        algoscope.lenses.role  # noqa: B018
