"""The house rules that a reader relies on: imports point one way, files stay short, nothing unpickles."""

import ast
import re
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src"
FILES = sorted((SOURCE / "algoscope").rglob("*.py"))
LAYERS = {  # a module or package, and the layer it stands on
    "core": 0, "version": 0,
    "tasks": 1, "config": 1, "model_config": 1, "data": 1,
    "networks": 2, "planted": 2,
    "runs": 3, "recipes": 3, "formats": 3, "training": 3,
    "subjects": 4,
    "lenses": 5,
    "verdicts": 6,
    "doors": 7, "__main__": 7,
}  # fmt: skip


def module_of(path: Path) -> str:
    parts = path.relative_to(SOURCE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(tree: ast.Module) -> set[str]:
    """Our own modules that a file names: in imports, and as `module:attribute` in the tables that load late."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("algoscope"):
            inner = {f"{node.module}.{alias.name}" for alias in node.names} & MODULES
            found |= inner or {node.module}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.startswith("algoscope")}
        elif isinstance(node, ast.Call) and getattr(node.func, "id", "").endswith("Entry"):
            found.add(ast.literal_eval(node.args[0]).partition(":")[0])
    return found & MODULES


MODULES = {module_of(path) for path in FILES}
GRAPH = {module_of(path): imports_of(ast.parse(path.read_text())) for path in FILES}


def layer_of(module: str) -> int:
    if module in ("algoscope", "algoscope.lenses"):  # the public namespaces: no layer imports them
        return 8
    return LAYERS[module.split(".")[1]]


def wrong_way(graph: dict[str, set[str]]) -> list[str]:
    return [
        f"{module} (layer {layer_of(module)}) imports {other} (layer {layer_of(other)})"
        for module, others in graph.items()
        for other in others
        if layer_of(other) > layer_of(module)
    ]


def cycles(graph: dict[str, set[str]]) -> list[str]:
    found, done = [], set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        if module in path:
            found.append(" -> ".join([*path[path.index(module) :], module]))
        elif module not in done:
            for other in graph.get(module, ()):
                visit(other, (*path, module))
            done.add(module)

    for module in graph:
        visit(module, ())
    return found


def test_imports_point_one_way() -> None:
    assert wrong_way(GRAPH) == []


def test_no_module_imports_itself_through_others() -> None:
    # two late edges close a circle on purpose: a finding draws itself, and the timeline follows any lens of the table
    graph = {module: others - {"algoscope.core.draw"} for module, others in GRAPH.items()}
    graph["algoscope.lenses.table"] -= {"algoscope.lenses.over_training.timeline_lens"}
    assert cycles(graph) == []


def test_these_rules_can_fail() -> None:
    assert wrong_way({"algoscope.core.files": {"algoscope.doors.cli.main"}})
    assert wrong_way({"algoscope.tasks.base": {"algoscope"}})
    assert cycles({"a": {"b"}, "b": {"a"}})


def test_every_module_has_a_layer() -> None:
    assert {module.split(".")[1] for module in GRAPH if module != "algoscope"} == set(LAYERS)


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_file_reads_in_one_sitting(path: Path) -> None:
    text = path.read_text()
    tree = ast.parse(text)
    assert len(text.splitlines()) <= 400
    assert ast.get_docstring(tree), "a module says what it is"
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno - node.lineno < 80, f"{node.name} is too long for one look"
            inner = [n for n in ast.walk(node) if isinstance(n, ast.Import | ast.ImportFrom)]
            assert not inner, f"{node.name} imports: only core.registry loads late"


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_nothing_unpickles(path: Path) -> None:
    text = path.read_text().replace('torch.load(path, map_location="cpu", weights_only=True)', "")
    for forbidden in ("pickle", "torch.load", "joblib", "np.load"):
        assert f"{forbidden}(" not in text
        assert f"import {forbidden}" not in text


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_no_sentence_has_lost_its_f(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        for part in node.values if isinstance(node, ast.JoinedStr) else ():
            text = part.value if isinstance(part, ast.Constant) else ""
            assert not re.search(r"\{[a-zA-Z_][^{}]*\}", text), f"a part of this text is no f-string: {text!r}"
