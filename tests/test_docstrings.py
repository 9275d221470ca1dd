"""The examples in docstrings, executed."""

import doctest
from importlib import import_module
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src"
SHOWING = sorted(path for path in SOURCE.rglob("*.py") if ">>> " in path.read_text())


@pytest.mark.parametrize("path", SHOWING, ids=lambda path: path.stem)
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_examples_do_what_the_docstring_says(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # some write a run or a page
    module = import_module(".".join(path.relative_to(SOURCE).with_suffix("").parts))
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    said: list[str] = []
    for examples in doctest.DocTestFinder(exclude_empty=True).find(module):
        runner.run(examples, out=said.append)
    assert not said, "".join(said)
    assert runner.tries
