"""The options of a lens command, read from a signature and its docstring."""

import inspect
import json
from collections.abc import Sequence
from typing import Literal

import click
import pytest

from algoscope.core.renaming import renamed_options
from algoscope.doors.cli import lens_command as command
from algoscope.doors.cli.main import COMMANDS
from algoscope.lenses.table import LENSES
from algoscope.subjects.text import Texts


def look(
    subject: str,
    inputs: Texts = None,
    queries: Literal["all", "answer"] = "all",
    sites: Sequence[str] = ("resid_pre", "head"),
    heads: Sequence[str] | None = None,
    n_inputs: int = 256,
    length: int | None = None,
    share: float = 0.5,
    exact: bool = False,
) -> None:
    """A lens.

    Args:
        subject: a model.
        inputs: one text or several; by default
            random ones. Drawn once.
        queries: the positions that look.
        n_inputs: how many are drawn.
        length, share: of each.
    Returns:
        Nothing: it is a test.
    """


HELPS = command.argument_helps(look)
OPTIONS = {
    name: command.option_of(parameter, HELPS.get(name, ""))
    for name, parameter in list(inspect.signature(look).parameters.items())[1:]
}


def value_of(name: str, *words: str) -> object:
    """What the function is called with for these words."""
    chosen = {}
    click.Command("look", params=[OPTIONS[name]], callback=chosen.update).main(list(words), standalone_mode=False)
    return chosen[name]


def test_helps_are_first_sentences_of_a_docstring() -> None:
    assert HELPS["inputs"] == "one text or several; by default random ones"
    assert (HELPS["length"], HELPS["share"]) == ("of each", "of each")
    assert set(HELPS) == {"subject", "inputs", "queries", "n_inputs", "length", "share"}
    assert OPTIONS["queries"].help == "The positions that look."
    assert OPTIONS["heads"].help == "May be repeated."
    assert command.argument_helps(lambda: None) == {}


@pytest.mark.parametrize(
    ("name", "words", "value"),
    [
        ("inputs", [], None),
        ("inputs", ["--input", "ab", "--input", "cd"], ("ab", "cd")),
        ("queries", ["--queries", "answer"], "answer"),
        ("sites", [], ("resid_pre", "head")),
        ("sites", ["--sites", "head, mlp_out"], ("head", "mlp_out")),
        ("heads", [], None),
        ("heads", ["--head", "L0H1"], ("L0H1",)),
        ("n_inputs", ["--n-inputs", "3"], 3),
        ("length", [], None),
        ("length", ["--length", "7"], 7),
        ("share", ["--share", "0.25"], 0.25),
        ("exact", [], False),
        ("exact", ["--exact"], True),
        ("exact", ["--no-exact"], False),
    ],
)
def test_an_option_gives_what_its_type_says(name: str, words: list[str], value: object) -> None:
    assert value_of(name, *words) == value


@pytest.mark.parametrize(("name", "words"), [("queries", ["--queries", "some"]), ("n_inputs", ["--n-inputs", "x"])])
def test_another_value_is_refused(name: str, words: list[str]) -> None:
    with pytest.raises(click.BadParameter):
        value_of(name, *words)


def test_a_former_option_is_hidden_and_warns_in_one_line(run, monkeypatch: pytest.MonkeyPatch) -> None:
    roles = LENSES.load("roles")
    renamed = renamed_options(how_many="n_inputs", texts="inputs")(roles)
    monkeypatch.setattr("algoscope.lenses.heads.head_roles.roles", renamed)
    asked = ("lens", "roles", "planted:induction", "--json", "--quiet")
    code, out, err = run(*asked, "--how-many", 8)
    assert (code, err.count("\n")) == (0, 1)
    assert err.startswith("algoscope: ")
    assert "'how_many' is now called 'n_inputs'" in err
    assert json.loads(out)["heads"] == json.loads(run(*asked, "--n-inputs", 8)[1])["heads"]
    _, out, err = run(*asked, "--text", "abcab")
    assert "'texts' is now called 'inputs'" in err
    assert json.loads(out)["heads"] == json.loads(run(*asked, "--input", "abcab")[1])["heads"]
    assert "how-many" not in run("lens", "roles", "--help")[1]


def test_a_former_lens_still_answers_and_is_not_listed(run) -> None:
    code, _, err = run("lens", "paths", "--help")
    assert (code, err) == (0, "algoscope: the lens 'paths' is now called 'path_patching'; the old name will go\n")
    assert "paths " not in run("lens", "--help")[1]


@pytest.mark.parametrize("name", [name for name in LENSES if "_" in name])
def test_a_lens_may_be_written_with_hyphens(name: str) -> None:
    group = command.LensGroup()
    hyphened = name.replace("_", "-")
    assert group.get_command(click.Context(group), hyphened).name == name
    assert group.resolve_command(click.Context(group), [hyphened, "planted:induction"])[1].name == name


def test_a_lens_prints_its_tables(run) -> None:
    code, out, _ = run("lens", "roles", "planted:induction", "--quiet")
    tables = LENSES.load("roles")("planted:induction").tables
    assert code == 0
    assert all(table.title in out and all(column in out for column in table.columns) for table in tables)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_of_every_command_has_help(name: str) -> None:
    if name in command.SHORT or name == "lens":
        return
    made = COMMANDS.load(name)
    commands = [made, *getattr(made, "commands", {}).values()]
    options = [option for one in commands for option in one.params if isinstance(option, click.Option)]
    assert [option.name for option in options if not option.help] == []
