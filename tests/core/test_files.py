"""Paths as users write them, and files that are what their names say."""

from pathlib import Path

import pytest

import algoscope as ag
from algoscope.core.errors import RunFolderError
from algoscope.core.files import user_path

FINDING = ag.Finding("kind", "claim", {"n": 1})


def test_a_tilde_is_the_home_folder_wherever_a_path_is_written(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    assert user_path("~/x") == user_path(Path("~/x")) == user_path(b"~/x") == tmp_path / "home" / "x"
    assert FINDING.save("~/a.json") == tmp_path / "home" / "a.json"
    assert ag.report("planted:induction", "~/page.html", clean="abcab") == tmp_path / "home" / "page.html"
    assert ag.export("planted:induction", "transformerlens", "~/w.safetensors")[0].parent == tmp_path / "home"
    assert [path.name for path in tmp_path.iterdir()] == ["home"]


@pytest.mark.parametrize("path", ["", "a\0b.json", "~nobody-of-this-name/x.json", 3, None])
def test_what_cannot_be_a_path_is_refused_in_one_line(path) -> None:
    with pytest.raises(RunFolderError, match=r"^[^\n]*(path|expand)[^\n]*$"):
        user_path(path)
