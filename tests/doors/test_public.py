"""What the package offers is what an editor sees: the imports of type checkers and the tables agree.

That a type checker sees signatures is in `tests/public_types.py`, which `make check` reads.
"""

import ast
import inspect
from pathlib import Path

import pytest
import torch

import algoscope
from algoscope.core.registry import Table
from algoscope.core.sections import Section
from algoscope.doors.public import PUBLIC, PUBLIC_LENSES
from algoscope.subjects._reading import Reader
from algoscope.subjects._running import Runner
from algoscope.tasks.base import WRITTEN
from algoscope.tasks.table import TASKS

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


def test_every_public_function_checks_its_arguments() -> None:
    """One text for a list, numbers of NumPy, unknown options: all by `core.arguments`, so none can be forgotten."""
    names = [(name, getattr(algoscope, name)) for name in PUBLIC if name not in ("AlgoscopeError", "Transformer")]
    functions = [(name, member) for name, member in names if not isinstance(member, type)]
    functions += [(name, getattr(algoscope.lenses, name)) for name in PUBLIC_LENSES]
    classes = [member for _, member in names if isinstance(member, type) and not issubclass(member, Section)]
    functions += [(f"{kind.__name__}.__init__", kind.__init__) for kind in classes]
    for kind in [algoscope.Subject, algoscope.Run, algoscope.Finding, algoscope.Panel, Runner, Reader]:
        methods = {name: getattr(member, "__func__", member) for name, member in vars(kind).items() if name[0] != "_"}
        functions += [(f"{kind.__name__}.{name}", method) for name, method in methods.items() if callable(method)]
    assert [name for name, function in functions if not hasattr(function, "checked")] == []
    assert all(hasattr(getattr(kind, name), "checked") for kind in map(TASKS.load, TASKS) for name in WRITTEN)
    assert len(functions) > 90


@pytest.mark.parametrize(
    "wrong", [5, None, b"x", [5], {"a"}, Path("x"), object(), float("nan"), torch.nn.Linear(2, 2), lambda: 1]
)
def test_whatever_is_no_model_or_no_text_is_one_line_everywhere(wrong: object) -> None:
    readers = ("logit", "attention", "attribution", "embeddings", "roles", "answers", "ablate", "attention_by_part")
    for name in PUBLIC_LENSES:
        lens = getattr(algoscope.lenses, name)
        needed = {"clean": "abcda", "corrupt": "cbada"} if "clean" in inspect.signature(lens).parameters else {}
        needed |= {"inputs": "abcab"} if name in readers else {}
        with pytest.raises(algoscope.AlgoscopeError, match=r"^[^\n]+$"):
            lens(wrong, **needed)
        for texts in needed:
            if wrong is None or isinstance(wrong, Path):
                continue
            with pytest.raises(
                algoscope.AlgoscopeError, match=rf"^[a-z_]+\(\): {texts} takes a text, or a list of texts, "
            ):
                lens("planted:induction", **needed | {texts: wrong})


@pytest.mark.parametrize("name", ["logit", "attention", "attribution", "embeddings", "roles", "ablate", "patch"])
def test_a_text_is_a_list_of_one(name: str) -> None:
    options = {"kind": "zero"} if name == "ablate" else {}
    texts = {"clean": "abcda", "corrupt": "cbada"} if name == "patch" else {"inputs": "abcda"}
    lens = getattr(algoscope.lenses, name)
    if name == "ablate":  # it needs two texts; of one read letter by letter there would be five
        with pytest.raises(algoscope.AlgoscopeError, match="not 1"):
            lens("planted:induction", **texts, **options)
        return
    one, listed = (
        lens("planted:induction", **texts, **options) for texts in (texts, {k: [v] for k, v in texts.items()})
    )
    assert one.to_json() == listed.to_json()
