"""A task of one's own: a class that gives its vocabulary, its prompts and their answers, in plain Python."""

import itertools
import json
import random
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import ClassVar

import pytest
import torch

import algoscope as ag
from algoscope.core.errors import AlgoscopeError, TaskError, VocabularyError
from algoscope.data import batches, held_out
from algoscope.tasks.specs import code_address, find_task, is_only_here, parsed_task, plain_task

PAGE = Path(__file__).parents[2] / "docs/own-task.md"
SEEN = itertools.count()
ALTERNATES = itertools.count()
ONCE = iter(["aa", "ab", "ba"])
NUMBERS = ["".join(letters) for letters in itertools.product("ab", repeat=12)]
SMALL = {"model": {"d_model": 8, "n_layers": 1, "n_heads": 2}, "train": {"steps": 3, "batch": 16}}


class Sorted(ag.Task):
    """Letters in order: texts, an answer of several tokens, a field."""

    vocabulary = "abcd|"
    parts: ClassVar = {"separator": slice(-1, None)}
    length: int = 3

    def prompts(self) -> Iterator[str]:
        return ("".join(letters) + "|" for letters in itertools.product("dcba", repeat=self.length))

    def answer(self, prompt: str) -> str:
        return "".join(sorted(prompt[:-1]))

    def classes(self, prompt: str) -> dict[str, object]:
        return {"distinct": len(set(prompt)) - 1, "first": prompt[0]}

    def variables(self, prompt: str) -> dict[str, object]:
        return {"smallest": min(prompt[:-1]), "counts": [prompt.count(letter) for letter in "abcd"]}

    def edge_cases(self) -> list[str]:
        return ["cba|", "aaa|"]

    def corrupt(self, prompt: str) -> str:
        return ("a" if prompt[0] == "d" else "d") + prompt[1:]


class Palindrome(ag.Task):
    """A classifier, on lists of tokens."""

    vocabulary = ("0", "1", "yes", "no")

    def prompts(self) -> Iterator[tuple[str, ...]]:
        return itertools.product("01", repeat=5)

    def answer(self, prompt: tuple[str, ...]) -> str:
        return "yes" if prompt == prompt[::-1] else "no"


class LastDigit(ag.Task):
    """10^8 prompts, which are drawn."""

    vocabulary = tuple("0123456789=")

    def draw(self, random: random.Random) -> str:
        return "".join(random.choice("0123456789") for _ in range(8)) + "="

    def answer(self, prompt: str) -> str:
        return str(sum(map(int, prompt[:-1])) % 10)


@pytest.fixture
def max_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file that the page shows, in an empty working directory."""
    monkeypatch.chdir(tmp_path)
    code = re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)[0]
    assert len([line for line in code.splitlines() if line.strip()]) <= 15
    path = tmp_path / "max_of_two.py"
    path.write_text(code.replace("64", "12"))
    (tmp_path / "max.json").write_text(json.dumps(SMALL))
    return path


def own(**members: object) -> type[ag.Task]:
    """A class with other members than those of a small, right task."""
    right: dict[str, object] = {
        "__module__": __name__,
        "vocabulary": ("a", "b"),
        "prompts": lambda self: ["aa", "ab", "ba", "bb"],
        "answer": lambda self, prompt: prompt[0],
    }
    members = {name: member for name, member in (right | members).items() if member is not None}
    return type("Mine", (ag.Task,), members)


# ---------------------------------------------------------------------- inputs and answers


def test_every_input_has_the_answer_that_the_class_gives() -> None:
    task = Sorted()
    tokens = task.every()
    texts = [task.decode(row) for row in tokens.tolist()]
    assert texts == sorted(f"{''.join(p)}|{''.join(sorted(p))}" for p in itertools.product("abcd", repeat=3))
    assert (task.n_ctx, task.prompt_length, task.domain_size, task.d_vocab) == (7, 4, 64, 5)
    assert task.keys(tokens).tolist() == list(range(64))
    assert task.completed(tokens[:, :4]).equal(tokens)
    assert task.expected("dab|") == "abd"
    assert task.answer("dab|") == "abd"


def test_classes_variables_parts_and_edge_cases_are_those_that_the_class_gives() -> None:
    task = Sorted()
    tokens = torch.tensor([task.sequence("dad|"), task.sequence("bbb|")])
    names = list(task.class_names("distinct")), list(task.class_names("first"))
    assert names == (["1", "2", "3"], ["a", "b", "c", "d"])
    assert task.class_schemes == ("distinct", "first")
    assert [task.class_of(tokens, by).tolist() for by in task.class_schemes] == [[1, 0], [3, 1]]
    values = task.variables_of(tokens)
    assert (values["smallest"].tolist(), values["counts"].tolist()) == ([[0], [1]], [[1, 0, 0, 2], [0, 3, 0, 0]])
    assert [task.decode(row) for row in task.edge_inputs().tolist()] == ["cba|abc", "aaa|aaa"]
    assert task.neighbour("cba|") == "dba|"
    spans = {name: (part.start, part.stop) for name, part in task.all_parts.items()}
    assert spans["separator"] == (3, 4)
    assert spans["answer so far"] == (4, 6)
    assert task.ordinals == tuple("abcd|")


def test_what_is_not_given_has_a_default() -> None:
    task = Palindrome()
    assert task.class_schemes == ("answer",)
    assert dict(task.class_names("answer")) == {"no": "answer is no", "yes": "answer is yes"}
    assert task.prompt(" 0  1 0 1 0") == "0 1 0 1 0"
    assert task.expected("0 1 0 1 0") == "yes"
    other = task.neighbour("0 1 0 1 0")
    assert task.expected(other) == "no"
    assert sum(a != b for a, b in zip(other, "0 1 0 1 0", strict=True)) == 1
    assert len(task.edge_inputs()) >= 7
    assert task.variables("0 0 0 0 0") == {}
    for text in ("0 1 0 1", "0 1 0 1 yes", "2 1 0 1 0"):
        assert not task.valid(text)


def test_draws_follow_the_seed_and_have_their_answers() -> None:
    task = LastDigit()
    one, same = (task.sample(50, torch.Generator().manual_seed(3)) for _ in range(2))
    assert one.equal(same)
    assert not one.equal(task.sample(50, torch.Generator().manual_seed(4)))
    assert all(int(row[-1]) == int(row[:8].sum()) % 10 for row in one)
    assert task.domain_size is None
    assert not task.uniform
    assert len(task.keys(one).unique()) == 50
    assert list(task.class_names("answer")) == [*"0123456789", "other"]
    assert not task.valid("1234=5678")


def test_lists_may_stand_for_functions_and_annotations_for_none() -> None:
    """A vocabulary may be a list, a property or annotated, and prompts a list."""
    for vocabulary in (["a", "b"], "ab", property(lambda self: ["a", "b"]), lambda self: "ab"):
        task = own(vocabulary=vocabulary, prompts=["bb", "ab"], edge_cases=("ab", "bb"))()
        assert (task.vocabulary, task.domain_size, len(task.edge_inputs())) == (("a", "b"), 2, 2)
    assert own(__annotations__={"vocabulary": tuple[str, ...]})().d_vocab == 2


def test_fields_configure_it() -> None:
    assert Sorted(length=2).domain_size == 16
    assert Sorted(length=2) != Sorted()
    with pytest.raises(AlgoscopeError, match="unknown field of Sorted 'lenght': did you mean 'length'"):
        Sorted(lenght=2)


def test_tasks_that_ship_have_the_same_members() -> None:
    task = ag.Modular(p=5)
    assert "".join(task.answer("1+2=")) == task.expected("1+2")
    assert len(list(task.prompts())) == 25
    assert task.classes("4+4=")["wrap"]
    assert task.valid(str(task.draw(random.Random(0))))


# ---------------------------------------------------------------------- contradictions


def use(members: dict[str, object]) -> None:
    task = own(**members)()
    task.every()
    task.class_names(task.class_schemes[0])
    task.edge_inputs()
    task.neighbour("ab")
    task.variables_of(task.every())
    task.sample(3, torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("members", "words"),
    [
        ({"vocabulary": None}, ["gives no vocabulary"]),
        ({"vocabulary": ("a", "b", "a")}, ["'a' twice"]),
        ({"vocabulary": ("a", 1)}, ["token 1 is 1, not a text"]),
        ({"vocabulary": ("a b", "c")}, ["'a b'", "space"]),
        ({"vocabulary": property(lambda self: 1 / 0)}, ["vocabulary fails", "ZeroDivisionError", "test_own_tasks.py:"]),
        ({"prompts": None}, ["neither prompts(self)", "draw(self, random)"]),
        ({"answer": None}, ["gives no answer(self, prompt)"]),
        ({"answer": lambda self, prompt: "c"}, ["answer('aa')", "'c' is not in the vocabulary"]),
        ({"answer": lambda self, prompt: [1]}, ["1 is not in the vocabulary", "not a text"]),
        ({"answer": lambda self, prompt: 5}, ["gives 5", "a list of tokens"]),
        ({"answer": lambda self, prompt: ""}, ["answer('aa') gives nothing"]),
        ({"answer": lambda self, prompt: prompt[9]}, ["answer('aa') fails", "IndexError", "test_own_tasks.py:"]),
        ({"prompts": lambda self: []}, ["prompts() gives no prompt"]),
        ({"prompts": lambda self: ["a", "b", ""]}, ["gives nothing"]),
        ({"prompts": lambda self: ["ab", "aba"]}, ["'aba' has 3 tokens, 'ab' 2"]),
        ({"prompts": lambda self: ["ab", "ba", "ab"]}, ["'ab' twice"]),
        ({"answer": lambda self, prompt: prompt * (prompt[0] == "a") or "a"}, ["answer('ba') has 1 tokens", "'aa' 2"]),
        ({"answer": lambda self, prompt: "ab"[next(SEEN) // 5 % 2]}, ["then 'b'", "alone"]),
        ({"edge_case": lambda self: []}, ["Mine.edge_case: did you mean 'edge_cases'"]),
        ({"__init__": lambda self, n: None}, ["Mine.__init__: a task is made of its fields"]),
        ({"width": 5}, ["Mine.width: every task has a member of that name"]),
        ({"__annotations__": {"keys": int}, "keys": 3}, ["Mine.keys: every task has a member"]),
        ({"parts": {"x": slice(0, 2), "y": 1}}, ["'y' is 1", "none is in two"]),
        ({"classes": lambda self, prompt: "x"}, ["classes('aa') gives 'x', not a dict"]),
        ({"corrupt": lambda self, prompt: "a"}, ["corrupt('ab') gives 'a', which is no prompt"]),
        ({"edge_cases": lambda self: ["aaa"]}, ["'aaa' has 3 tokens"]),
        ({"edge_cases": lambda self: 1 / 0}, ["edge_cases() fails", "ZeroDivisionError", "test_own_tasks.py:"]),
        ({"edge_cases": "aa"}, ["edge_cases is 'aa'", "give a list of prompts"]),
        ({"prompts": lambda self: "ab"}, ["prompts() gives 'ab'", "give a list of prompts"]),
        ({"prompts": lambda self: None}, ["prompts() gives None", "give a list of prompts"]),
        ({"prompts": lambda self: itertools.repeat("ab")}, ["prompts() gives more than", "draw(random)"]),
        ({"prompts": lambda self: ONCE}, ["prompts() gives other prompts when"]),
        (
            {"prompts": lambda self: random.sample(NUMBERS, 9)},
            ["prompts() gives other prompts when"],
        ),
        ({"draw": lambda self, _: random.choice(NUMBERS)}, ["draw(random) gives other prompts for the same seed"]),
        ({"draw": lambda self, _: "bbb"}, ["prompts have different lengths", "'bbb' has 3 tokens"]),
        ({"prompts": lambda self: ["ab", "ba"], "draw": lambda self, _: "bb"}, ["draw() gives", "'bb' is no prompt"]),
        ({"answer": lambda self, prompt: set(prompt)}, ["answer('aa') gives {'a'}", "a list of tokens"]),
        ({"prompts": lambda self: [{"a": 1, "b": 2}]}, ["prompts() gives {'a': 1, 'b': 2}", "a list of tokens"]),
        ({"answer": lambda self, prompt: "ab"[next(ALTERNATES) % 2]}, ["then", "depends on its prompt alone"]),
        ({"answer": lambda self, prompt: exit(3)}, ["answer('aa') fails with SystemExit: 3", "test_own_tasks.py:"]),
        ({"answer": {"aa": "a"}}, ["Mine.answer is {'aa': 'a'}", "def answer(self, ...)"]),
        ({"corrupt": lambda self, prompt: prompt}, ["corrupt('ab') gives 'ab', which has the same answer"]),
        ({"variables": lambda self, prompt: {"x": 0.5}}, ["gives x = 0.5: give whole numbers or tokens"]),
        ({"variables": lambda self, prompt: {prompt: 1}}, ["variables('ab') gives {'ab': 1}, not a dict with", "aa"]),
    ],
)
def test_a_contradiction_is_one_line_that_names_it(members: dict[str, object], words: list[str]) -> None:
    with pytest.raises(TaskError) as raised:
        use(members)
    assert all(word in str(raised.value) for word in words), raised.value
    assert "\n" not in str(raised.value)


def test_what_the_code_prints_does_not_reach_standard_output(capsys: pytest.CaptureFixture[str]) -> None:
    def answer(self: ag.Task, prompt: str) -> str:
        print("at work")
        return prompt[0]

    own(answer=answer)().every()
    out, err = capsys.readouterr()
    assert out == ""
    assert "at work" in err


def test_a_text_that_is_no_prompt_names_one() -> None:
    with pytest.raises(VocabularyError, match=r"'a' is no prompt of Mine: write one such as 'ba'"):
        own()().prompt("a")


# ---------------------------------------------------------------------- data


def test_small_domains_leave_inputs_to_train_on() -> None:
    config = ag.RunConfig(task=Palindrome(), **SMALL)
    test = held_out(config.task, config.data, 0, torch.device("cpu"))
    trained = batches(config.task, config.data, 16, 0, test).batch(0)
    keys = config.task.keys(test)
    assert len(test) == 32 // 5
    assert not torch.isin(config.task.keys(trained), keys).any()
    one = own(prompts=lambda self: ["ab"])()
    with pytest.raises(AlgoscopeError, match="one input"):
        held_out(one, config.data, 0, torch.device("cpu"))


def test_held_out_draws_are_at_most_a_fifth_of_draws() -> None:
    few = own(prompts=None, draw=lambda self, random: random.choice("ab") * 2 + random.choice("ab") * 8)()
    data = ag.RunConfig(task=LastDigit(), **SMALL).data
    assert len(held_out(LastDigit(), data.model_copy(update={"n_test": 30}), 0, torch.device("cpu"))) == 30
    with pytest.raises(AlgoscopeError, match="draws few different inputs"):
        held_out(few, data, 0, torch.device("cpu"))


def test_inputs_known_to_be_hard_are_refused() -> None:
    with pytest.raises(AlgoscopeError, match=r"data.hard_share 0.5: Palindrome has no inputs known to be hard"):
        ag.RunConfig(task=Palindrome(), data={"hard_share": 0.5}, **SMALL)


# ---------------------------------------------------------------------- names and records


def test_one_grammar_names_every_task(max_file: Path) -> None:
    assert find_task("modular?p=7&form=ab") == ag.Modular(p=7, form="ab")
    assert find_task("max_of_two.py:MaxOfTwo").expected("10 3") == "10"
    odd = max_file.parent / "a b?c:d" / "max?.py"
    odd.parent.mkdir()
    odd.write_text(max_file.read_text())
    task = find_task(f"{odd}:MaxOfTwo")
    assert task.expected("10 3") == "10"
    with pytest.raises(TaskError, match=re.escape("--task 'a b?c:d/max?.py:MaxOfTwo'")):
        _ = parsed_task(plain_task(task) | {"sha256": "0" * 64}).vocabulary
    for spec, words in {
        "modul": "did you mean 'modular'",
        "modular?q=3": "unknown field of the task modular 'q'",
        "modular?p": "write p=VALUE",
        "max_of_two.py": "NAME",
        "max_of_two.py:MaxOfTow": "did you mean 'MaxOfTwo'",
        "max_of_two.py:itertools": "not a task",
        "max_of_two.py:MaxOfTwo?k=3": "unknown field of the task MaxOfTwo 'k'",
        "none.py:X": "none.py",
    }.items():
        with pytest.raises(AlgoscopeError, match=re.escape(words)) as raised:
            find_task(spec)
        assert "\n" not in str(raised.value)


def test_a_config_records_class_file_hash_and_fields() -> None:
    plain = plain_task(Sorted(length=2))
    assert (plain["class"], plain["fields"]) == ("Sorted", {"length": 2})
    assert plain["file"].endswith("test_own_tasks.py")
    assert parsed_task(json.loads(json.dumps(plain))) == Sorted(length=2)
    other = parsed_task(plain | {"sha256": "0" * 64})
    with pytest.raises(TaskError, match=r"--task .*test_own_tasks.py:Sorted, .*another version"):
        _ = other.vocabulary


def test_override_changes_its_fields() -> None:
    config = ag.RunConfig(task=Sorted(), **SMALL)
    changed = ag.override(config, {"task.length": "2", "lr": 0.5})
    assert (changed.task, changed.model.n_ctx, changed.optim.lr) == (Sorted(length=2), 5, 0.5)
    with pytest.raises(AlgoscopeError, match=r"task.length: "):
        ag.override(config, {"task.length": "x"})


# ---------------------------------------------------------------------- the whole way


def test_a_run_folder_never_runs_the_code_by_itself(max_file: Path, run: Callable[..., tuple[int, str, str]]) -> None:
    task = "--task", "max_of_two.py:MaxOfTwo"
    assert run("train", "max.json", *task, "--quiet")[0] == 0
    recorded = json.loads(Path("runs/max-s0/config.json").read_text())["task"]
    assert (recorded["class"], recorded["file"]) == ("MaxOfTwo", "max_of_two.py")
    assert run("certify", "run:max-s0", *task, "--quiet")[0] == 1
    code, out, _ = run("generate", "run:max-s0", "10 3", *task, "--json")
    assert (code, json.loads(out)["expected"]) == (0, "10")

    max_file.write_text(max_file.read_text() + "# changed\n")
    code, out, _ = run("certify", "run:max-s0", *task, "--quiet", "--json")
    assert re.search("changed since the run was trained: sha256 .* then, .* now", json.loads(out)["note"])
    code, _, err = run("train", "max.json", *task, "--resume", "--quiet")
    assert (code, "task.sha256" in err) == (2, True)

    text = Path("runs/max-s0/config.json").read_text()
    Path("runs/max-s0/config.json").write_text(text.replace('"MaxOfTwo"', '"NotLoaded"'))
    code, _, err = run("certify", "run:max-s0")
    assert code == 2
    assert "the task is NotLoaded of max_of_two.py" in err
    assert "give --task max_of_two.py:NotLoaded" in err
    assert run("runs")[0] == run("runs", "show", "max-s0")[0] == 0


def test_training_reaches_every_answer_and_lenses_look_inside(tmp_path: Path) -> None:
    config = ag.RunConfig(task=Sorted(), model={"n_heads": 4}, train={"steps": 150, "batch": 64}, data={"n_test": 12})
    trained = ag.train(config, runs_dir=tmp_path, progress=False)
    assert trained.config == config
    verdict = ag.certify(trained)
    assert verdict["wrong"] == 0, verdict.claim
    assert [row["class"] for row in verdict["by_class"]] == ["1", "2", "3"]
    model = ag.open(trained)
    assert ag.lenses.patch(model, clean="cba|", corrupt=model.task.neighbour("cbd|")).panels
    assert ag.lenses.answers(model)["edge_cases_right"] == 2
    assert ag.lenses.attention_by_part(model, n_inputs=64).panels


def test_weights_of_other_tools_are_read_for_it(max_file: Path) -> None:
    address = f"{max_file}:MaxOfTwo"
    task = find_task(address)
    trained = ag.train(ag.RunConfig(task=task, **SMALL), runs_dir="runs", name="here", progress=False)
    weights, _ = ag.export(trained, "transformerlens", "there.safetensors")
    imported = ag.import_weights(weights, address, runs_dir="runs", name="back")
    wrong = ag.certify(trained)["wrong"]
    for model in (imported, ag.open(f"foreign:{weights}?task={address}"), ag.open(f"foreign:{weights}", task=task)):
        assert ag.certify(model)["wrong"] == wrong
    with pytest.raises(AlgoscopeError, match="leave out one"):
        ag.open(f"foreign:{weights}?task={address}", task=task)


def test_a_verdict_on_draws_says_that_they_are_draws(tmp_path: Path) -> None:
    trained = ag.train(ag.RunConfig(task=LastDigit(), **SMALL), runs_dir=tmp_path, progress=False)
    verdict = ag.certify(trained, sample=200)
    assert verdict["domain"] == {"size": None, "method": "sampled", "checked": 200}
    assert "draws by the task" in verdict.claim


def test_other_processes_load_the_file_of_a_task_unless_it_is_a_script(max_file: Path) -> None:
    found = find_task("max_of_two.py:MaxOfTwo")
    assert code_address(found) == f"{max_file}:MaxOfTwo"
    script = own(__module__="__main__")()
    assert (is_only_here(found), is_only_here(script), is_only_here(ag.Modular())) == (False, True, False)
    assert code_address(script) is None


@pytest.mark.long
def test_many_seeds_train_in_workers_that_load_the_file(max_file: Path) -> None:
    found = find_task("max_of_two.py:MaxOfTwo")
    members = {f"w{seed}": ag.RunConfig(task=found, seed=seed, **SMALL) for seed in (0, 1)}
    population = ag.train_many(members, runs_dir="runs", workers=2, stack=1, progress=False)
    assert (sorted(population.runs), population.failed) == (["w0", "w1"], {})
