"""Prints the structure of the source as numbers: `python scripts/house.py [FOLDER WITH THE PACKAGE]`.

Files, lines, lines of code, modules with a single importer, checks of what kind of subject one has, imports between
rooms, cycles.
"""

import ast
import io
import re
import sys
import tokenize
from collections import defaultdict
from pathlib import Path
from statistics import median


def modules_of(source: Path) -> dict[str, Path]:
    """Every module of the package by its dotted name; a package by that of its folder."""
    found = {}
    for path in sorted((source / "algoscope").rglob("*.py")):
        parts = path.relative_to(source).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports_of(path: Path, modules: dict[str, Path]) -> set[str]:
    """The modules of the package that a file imports at run time or names in a table (`module:attribute`)."""
    found = set()
    tree = ast.parse(path.read_text())
    for_type_checkers = [n for n in ast.walk(tree) if isinstance(n, ast.If) and "TYPE_CHECKING" in ast.unparse(n.test)]
    unread = {inner for block in for_type_checkers for inner in ast.walk(block)}
    for node in set(ast.walk(tree)) - unread:
        if isinstance(node, ast.ImportFrom) and node.module:
            inner = {f"{node.module}.{alias.name}" for alias in node.names} & set(modules)
            found |= inner or {node.module}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found |= set(re.findall(r"^(algoscope[\w.]*):\w+$", node.value))
    return found & set(modules)


def lines_of_code(path: Path) -> int:
    """Lines that are neither blank, comment nor docstring."""
    text = path.read_text()
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    docstrings = set[int]()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, documented) and ast.get_docstring(node, clean=False) is not None:
            first = node.body[0]
            docstrings |= set(range(first.lineno, (first.end_lineno or first.lineno) + 1))
    layout = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER)
    code = set[int]()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in layout:
            code |= set(range(token.start[0], token.end[0] + 1))
    return len(code - docstrings)


def cycles(graph: dict[str, set[str]]) -> int:
    """Imports that lead back to a module on the way to them."""
    back, done = 0, set[str]()

    def visit(module: str, path: tuple[str, ...]) -> None:
        nonlocal back
        if module in path:
            back += 1
        elif module not in done:
            for other in graph[module]:
                visit(other, (*path, module))
            done.add(module)

    for module in graph:
        visit(module, ())
    return back


def main(source: Path) -> None:
    modules = modules_of(source)
    graph = {name: imports_of(path, modules) for name, path in modules.items() if name != "algoscope"}
    graph = {name: {other for other in others if other != "algoscope"} for name, others in graph.items()}
    lines = {name: len(path.read_text().splitlines()) for name, path in modules.items()}
    plain = {name: n for name, n in lines.items() if modules[name].name != "__init__.py"}
    importers = defaultdict(set)
    for name, others in graph.items():
        for other in others:
            importers[other].add(name)
    rooms = {name: str(path.parent.relative_to(source)) for name, path in modules.items()}
    text = "\n".join(path.read_text() for path in modules.values())
    largest = max(plain, key=lambda name: plain[name])
    public = [name for name in importers if len(importers[name]) == 1 and not name.rpartition(".")[2].startswith("_")]
    print(f"files                         {len(plain)}")
    print(f"lines                         {sum(lines.values()):,}")
    print(f"lines of code                 {sum(map(lines_of_code, modules.values())):,}")
    print(f"median file, lines            {median(plain.values()):.0f}")
    print(f"largest file, lines           {plain[largest]} ({largest})")
    print(f"modules with one importer     {len(public)}")
    print(f"isinstance checks of subjects {len(re.findall(r'isinstance.[^)]*Subject.', text))}")
    print(f"rooms                         {len(set(rooms.values()))}")
    crossing = [(a, b) for a, others in graph.items() for b in others if rooms[a] != rooms[b]]
    print(f"imports between rooms         {len(crossing)} of {sum(map(len, graph.values()))}")
    tables = ("algoscope.core.finding", "algoscope.lenses.table")  # whose names load late, on purpose
    print(f"cycles                        {cycles({n: set() if n in tables else o for n, o in graph.items()})}")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parents[1] / "src")
