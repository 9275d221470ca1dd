"""Paths as users write them, and files that are what their names say."""

from pathlib import Path

import pytest

import algoscope as ag
from algoscope.core.errors import DrawingError, RunFolderError
from algoscope.core.files import output_path, user_path, write_atomically

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


@pytest.mark.parametrize("name", ["x.xyz", "x", ".json", "x.json.gz", ".."])
def test_an_ending_that_is_not_known_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(DrawingError, match=r"^cannot write '[^\n]*': the ending must be one of .html, .png"):
        FINDING.save(tmp_path / name)


def test_an_ending_in_capitals_is_the_ending(tmp_path: Path) -> None:
    assert ag.Finding.from_json(FINDING.save(tmp_path / "X.JSON").read_text()).facts == {"n": 1}


def test_where_nothing_can_be_written_is_said_with_its_reason(tmp_path: Path) -> None:
    (tmp_path / "folder.json").mkdir()
    (tmp_path / "file").write_text("x")
    reasons = {
        "folder.json": "Is a directory; name a file in it",
        "file/x.json": "file is a file; choose another folder",
    }
    for name, reason in reasons.items():
        with pytest.raises(RunFolderError, match=rf"^cannot write [^\n]*{reason}[^\n]*$"):
            FINDING.save(tmp_path / name)
    with pytest.raises(RunFolderError, match=r"^'n+.* cannot name a file: it is longer than 255 bytes"):
        FINDING.save(tmp_path / f"{'n' * 300}.json")
    assert FINDING.save(tmp_path / f"{'n' * 240}.json").is_file(), "as long as a name may be"
    assert FINDING.save(tmp_path / "new" / "folder" / "x.json").is_file()


def test_a_folder_without_the_right_to_write_is_refused_before_the_work(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setattr("os.access", lambda *_: False)  # the tests may run as root, who may write everywhere
    with pytest.raises(RunFolderError, match="Permission denied"):
        output_path(tmp_path / "a" / "x.json", (".json",))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["a.png", "a.svg", "a.html", "a.json", "A.PNG"])
def test_a_file_that_is_not_what_its_ending_says_is_never_written(name: str, tmp_path: Path) -> None:
    for content in (b"u\xabZ", b"", "data:,"):
        with pytest.raises(DrawingError, match=r"bytes\) is no (PNG|SVG|HTML|JSON)$"):
            write_atomically(tmp_path / name, content)
    assert list(tmp_path.iterdir()) == []


def test_lone_surrogates_become_visible_in_files(tmp_path: Path) -> None:
    write_atomically(tmp_path / "a.txt", "x\udce9")
    assert (tmp_path / "a.txt").read_bytes() == rb"x\udce9"


@pytest.mark.parametrize(
    "command",
    [
        ("lens", "attention", "hf:no-such-model", "--input", "a"),
        ("patch", "hf:no-such-model", "--clean", "a", "--corrupt", "b"),
        ("report", "hf:no-such-model"),
        ("study", "no-such-study"),
        ("census", "no-such-recipe"),
        ("selfcheck",),
    ],
)
def test_every_command_refuses_an_ending_before_it_looks_at_anything_else(run, command, monkeypatch, tmp_path) -> None:
    monkeypatch.chdir(tmp_path)
    for out in ("x.xyz", "x.pdf", "x"):
        code, _, err = run(*command, "--out", out)
        assert (code, err.count("\n")) == (2, 1)
        assert f"cannot write {out!r}: the ending must be one of .html" in err
    assert list(tmp_path.iterdir()) == []
