"""A walk over everything that Python offers: lenses, verdicts, runs of a model, edits, configs, files.

Each call ends in a right result or in an `AlgoscopeError` of one line, whatever the surroundings; the same arguments
in another form give the same result; and looking changes nothing.
"""

import inspect
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import algoscope as ag
import zoo
from outcomes import (
    SURROUNDINGS,
    Refused,
    ambient_state,
    check_finding,
    close,
    document,
    is_what_its_ending_says,
    outcome,
    surroundings,
    unchanged,
)
from values import NAMES_OF_RUNS, ODD_FOLDERS, PROMPTS, WRONG, calls

KINDS = {
    "planted:induction": "letters", "planted:reversal": "reversal", "planted:carry-adder": "addition3",
    "run:add": "addition", "run:copy": "copying", "run:modular": "modular", "hf:gpt2": "free", "hf:ends": "free",
    "hf:llama": "free", "hf:neox": "ids",
}  # fmt: skip
LENSES = [name for name in dir(ag.lenses) if inspect.isfunction(getattr(ag.lenses, name)) and not name.startswith("_")]
OVER_RUNS = {"timeline", "progress", "induction_phase"}
NOT_DRAWN = ("subject", "runs_dir", "progress", "targets", "measures", "what", "of")
models = st.tuples(st.sampled_from(zoo.NAMES), st.sampled_from(zoo.DTYPES))


@pytest.mark.parametrize("lens", LENSES)
@given(data=st.data())
def test_a_lens(lens: str, data: st.DataObject) -> None:
    """The same arguments in another form, in other surroundings, give the same finding."""
    function, subject, dtype, name = drawn(lens, data)
    plain, same = data.draw(calls(function, PROMPTS[KINDS[name]], NOT_DRAWN))
    around = data.draw(st.sampled_from(list(SURROUNDINGS)))
    with unchanged(subject):
        result = outcome(lambda: function(subject, **plain))
        with surroundings(around):
            again = outcome(lambda: function(subject, **same))
    assert isinstance(result, Refused) == isinstance(again, Refused), f"{same} {around}: {result} or {again}"
    if not isinstance(result, Refused):
        check_finding(result)
        tokens_fit(result, plain)
        close(document(result), document(again), 1e-4 if dtype == torch.float32 else 2e-2)


@pytest.mark.parametrize("lens", LENSES)
@given(data=st.data())
def test_a_lens_with_a_wrong_argument(lens: str, data: st.DataObject) -> None:
    function, subject, _, name = drawn(lens, data)
    plain, _ = data.draw(calls(function, PROMPTS[KINDS[name]], NOT_DRAWN))
    offered = [name for name in list(inspect.signature(function).parameters)[1:] if name not in NOT_DRAWN]
    wrong = {data.draw(st.sampled_from(offered or ["nonsense"])): data.draw(st.sampled_from(WRONG))}
    with unchanged(subject):
        result = outcome(lambda: function(subject, **(plain | wrong)))
    if not isinstance(result, Refused):
        check_finding(result)


def drawn(lens: str, data: st.DataObject) -> tuple[Any, Any, torch.dtype, str]:
    names = [name for name in zoo.NAMES if name.startswith("run:")] if lens in OVER_RUNS else zoo.NAMES
    name, dtype = data.draw(st.sampled_from(names)), data.draw(st.sampled_from(zoo.DTYPES))
    return getattr(ag.lenses, lens), zoo.subject(name, dtype), dtype, name


TEXT_LENSES = [
    lens for lens in LENSES if {"inputs", "clean"} & set(inspect.signature(getattr(ag.lenses, lens)).parameters)
]


@pytest.mark.parametrize("name", ["planted:induction", "run:add", "hf:gpt2"])
@pytest.mark.parametrize("lens", TEXT_LENSES)
def test_a_text_is_a_list_of_one(lens: str, name: str) -> None:
    """It is never read letter by letter."""
    function, subject = getattr(ag.lenses, lens), zoo.subject(name)
    first, second = {"planted:induction": ("abcab", "abdab"), "run:add": ("1+2=", "3+4=")}.get(name, zoo.PAIR)
    texts = [first, second] if "clean" in inspect.signature(function).parameters else [first]
    alone, listed = (
        outcome(lambda arguments=arguments: function(subject, *arguments))
        for arguments in (texts, [[text] for text in texts])
    )
    assert isinstance(alone, Refused) == isinstance(listed, Refused), (alone, listed)
    assert isinstance(alone, Refused) or document(alone) == document(listed)


@pytest.mark.parametrize(
    "option",
    [
        {"metric": lambda logits: logits.mean(dim=(-1, -2))},
        {"target": 4},
        {"target": np.int64(4)},
        {"target": 4, "rival": 5},
    ],
)
@pytest.mark.parametrize(
    "lens", [lens for lens in LENSES if "metric" in inspect.signature(getattr(ag.lenses, lens)).parameters]
)
def test_what_patching_measures(lens: str, option: dict[str, Any]) -> None:
    finding = outcome(lambda: getattr(ag.lenses, lens)(zoo.subject("hf:gpt2"), *zoo.PAIR, **option))
    if not isinstance(finding, Refused):
        check_finding(finding)


def tokens_fit(finding: Any, arguments: dict[str, Any]) -> None:
    """The tokens that a finding shows spell the given texts, and its target is the word that was given."""
    inputs = arguments.get("inputs") or []
    rows = finding.facts.get("inputs", [finding.facts])
    shown = [row["tokens"] for row in rows if isinstance(row, dict) and "tokens" in row]
    for text, tokens in zip([inputs] if isinstance(inputs, str) else inputs, shown, strict=False):
        if text in zoo.SPELLED:
            spelled = "".join(token for token in tokens if not token.startswith("<")).replace("▁", " ")
            assert spelled.strip().startswith(text), f"{text!r} is shown as {tokens}"
    target, word = finding.facts.get("target"), arguments.get("target")
    if isinstance(word, str) and word.strip() and isinstance(target, list) and target:
        assert word.strip() in target[0] or target[0].startswith("<0x"), f"target {word!r} is read as {target[0]!r}"


# ---------------------------------------------------------------------- running a model


def some_tokens(subject: Any, n_inputs: int, n_pos: int, seed: int = 0) -> torch.Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.randint(0, subject.cfg.d_vocab, (n_inputs, min(n_pos, subject.cfg.n_ctx)), generator=draw)


@given(name=st.sampled_from(zoo.NAMES), dtype=st.sampled_from(zoo.DTYPES), stream=st.sampled_from([1.0, 300.0, 3000.0]))
def test_recording_changes_no_logit(name: str, dtype: torch.dtype, stream: float) -> None:
    subject = zoo.subject(name, dtype, stream)
    tokens = some_tokens(subject, 2, 4)
    with unchanged(subject):
        plain = outcome(lambda: subject.run(tokens)[0])
        recorded = outcome(lambda: subject.run_with_cache(tokens)[0])
    assert isinstance(plain, Refused) == isinstance(recorded, Refused), (plain, recorded)
    if not isinstance(plain, Refused):
        off = (plain.float() - recorded.float()).abs().max()
        assert off <= 1e-2 * plain.float().abs().max().clamp(min=1), f"recording moves the logits by {off}"


SITE = "blocks.0.attn.hook_z"
MASK = torch.tensor([[False, True, True], [True, True, True]])
FORMS: dict[str, list[Callable[[torch.Tensor], dict[str, Any]]]] = {
    "tokens": [
        lambda tokens: {"tokens": tokens}, lambda tokens: {"tokens": tokens.int()},
        lambda tokens: {"tokens": tokens.numpy()}, lambda tokens: {"tokens": tokens.tolist()},
    ],
    "masks": [
        lambda tokens: {"tokens": tokens, "attention_mask": MASK},
        lambda tokens: {"tokens": tokens, "attention_mask": MASK.long()},
        lambda tokens: {"tokens": tokens, "attention_mask": MASK.float()},
        lambda tokens: {"tokens": tokens, "attention_mask": MASK.int().tolist()},
    ],
    "sites": [
        lambda tokens: {"tokens": tokens, "record": [SITE]}, lambda tokens: {"tokens": tokens, "record": SITE},
        lambda tokens: {"tokens": tokens, "record": ("z", 0)}, lambda tokens: {"tokens": tokens, "record": (("z", 0),)},
    ],
    "edits": [
        lambda tokens: {"tokens": tokens, "edits": [ag.Zero(SITE)]},
        lambda tokens: {"tokens": tokens, "edits": ag.Zero(SITE)},
        lambda tokens: {"tokens": tokens, "edits": (ag.Zero(("z", 0)),)},
    ],
}  # fmt: skip
"""Arguments of `run`, and the same in other forms."""


@pytest.mark.parametrize("question", FORMS)
@given(model=models)
def test_arguments_of_a_run_in_other_forms(question: str, model: Any) -> None:
    subject = zoo.subject(*model)
    tokens = some_tokens(subject, 2, 3)
    first, *others = (form(tokens) for form in FORMS[question])
    with unchanged(subject):
        logits, cache = subject.run(**first)
        for form in others:
            other = outcome(lambda form=form: subject.run(**form))
            if not isinstance(other, Refused):
                assert torch.equal(other[0].nan_to_num(), logits.nan_to_num()), form
                assert other[1].keys() == cache.keys()


@pytest.mark.parametrize("names", [[SITE], SITE, (SITE,), {SITE}, [("z", 0)], ("z", 0), lambda name: name == SITE])
def test_names_are_taken_as_a_filter(names: Any) -> None:
    subject = zoo.subject("planted:induction")
    recorded = outcome(lambda: subject.run_with_cache(some_tokens(subject, 1, 3), names_filter=names))
    assert isinstance(recorded, Refused) or list(recorded[1]) == [SITE]


@given(model=models, data=st.data())
def test_wrong_arguments_of_a_run(model: Any, data: st.DataObject) -> None:
    subject = zoo.subject(*model)
    tokens = some_tokens(subject, 1, 3)
    usual: dict[str, Any] = {
        "tokens": tokens, "prompts": tokens, "edits": [ag.Zero(("z", 0))], "n_new": 2, "text": "a", "texts": ["a"],
        "stream": torch.zeros(1, 2, subject.cfg.d_model, dtype=model[1]), "ids": tokens,
    }  # fmt: skip
    method = getattr(subject, data.draw(st.sampled_from(METHODS)))
    options = list(inspect.signature(method).parameters)
    arguments = {name: usual[name] for name in options if name in usual}
    arguments[data.draw(st.sampled_from(options))] = data.draw(st.sampled_from(WRONG))
    with unchanged(subject):
        outcome(lambda: method(**arguments))


METHODS = [
    "run",
    "run_with_cache",
    "run_each",
    "generate_tokens",
    "generate",
    "generate_many",
    "to_tokens",
    "to_string",
]


# ---------------------------------------------------------------------- edits

AXES = {
    "resid_pre": "pos", "attn_out": "pos", "z": "pos head", "result": "pos head", "pattern": "head pos",
    "attn_scores": "head pos",
}  # fmt: skip


@pytest.mark.parametrize("form", ["whole", "slice", "one of several", "a list of one", "NumPy index", "array"])
@given(model=models, data=st.data())
def test_an_edit_changes_what_it_covers(form: str, model: Any, data: st.DataObject) -> None:
    """A value of the shape of the whole site and its slice are the same edit; what is not covered stays."""
    subject = zoo.subject(*model)
    n = data.draw(st.integers(1, min(5, subject.cfg.n_ctx)))  # as many inputs as positions: where shapes mislead
    tokens, others = (some_tokens(subject, n, n, seed) for seed in (1, 2))
    site = data.draw(st.sampled_from(list(AXES))), 0
    axes = AXES[site[0]].split()
    limit = data.draw(st.sampled_from(axes))
    dim = 1 + axes.index(limit)
    value, old = (subject.run(inputs, record=[site])[1][site] for inputs in (others, tokens))
    index = data.draw(st.integers(-value.shape[dim], value.shape[dim] - 1))

    def at(chosen: Any) -> tuple[Any, ...]:
        return (slice(None),) * dim + (chosen,)

    whole = outcome(lambda: subject.run(tokens, record=[site], edits=[ag.Patch(site, value=value, **{limit: index})]))
    assert not isinstance(whole, Refused), whole
    rest = [i for i in range(value.shape[dim]) if i != index % value.shape[dim]]
    assert torch.equal(whole[1][site][at(rest)], old[at(rest)])
    if site[0] != "attn_scores":  # masked scores stay masked
        assert torch.equal(whole[1][site][at(index)], value[at(index)])
    given_, where = {
        "whole": (value, index), "slice": (value[at(index)], index), "one of several": (value[at([index])], (index,)),
        "a list of one": (value, [index]), "NumPy index": (value, np.int64(index)),
        "array": (value.float().numpy(), index),
    }[form]  # fmt: skip
    sliced = outcome(lambda: subject.run(tokens, edits=[ag.Patch(site, value=given_, **{limit: where})])[0])
    if not isinstance(sliced, Refused):
        assert torch.equal(sliced.nan_to_num(), whole[0].nan_to_num()), "an edit of something else than was meant"


@given(model=models, data=st.data())
def test_wrong_arguments_of_an_edit(model: Any, data: st.DataObject) -> None:
    subject = zoo.subject(*model)
    tokens = some_tokens(subject, 2, 3)
    edit = getattr(ag, data.draw(st.sampled_from(["Zero", "Mean", "Add", "Resample", "Patch", "Rotate"])))
    options = list(inspect.signature(edit).parameters)
    value = subject.run(tokens, record=[("resid_pre", 0)])[1]["resid_pre", 0]
    usual = {"site": ("resid_pre", 0), "value": value, "basis": torch.eye(subject.cfg.d_model)[:, :2].to(value)}
    arguments = {name: usual[name] for name in options if name in usual}
    arguments[data.draw(st.sampled_from(options))] = data.draw(st.sampled_from(WRONG))
    with unchanged(subject):
        outcome(lambda: subject.run(tokens, edits=[edit(**arguments)]))
        outcome(lambda: subject.run_each(tokens, [edit(**arguments)]))


# ---------------------------------------------------------------------- everything else that is public

CALLS: dict[str, dict[str, Any]] = {
    "Addition": {"n_digits": 2}, "Subtraction": {"n_digits": 2}, "Modular": {"p": 7}, "Group": {"group": "S3"},
    "Copying": {"length": 10}, "Reversal": {"length": 4},
    "ModelConfig": {"d_vocab": 8, "n_ctx": 6, "d_model": 8, "n_heads": 2, "act_fn": "relu"},
    "Finding": {"kind": "k", "claim": "c", "facts": {"a": 1}}, "Run": {"path": Path("nowhere")},
    "params": {"what": "gpt2"}, "runs_directory": {}, "checkup": {}, "curves": {"rows": []},
    "open": {"name": "planted:induction"}, "report": {"subject": "nowhere", "out": "x.html"},
    "export": {"subject": "planted:carry-adder", "to": "huggingface", "out": "somewhere"},
    "import_weights": {"path": "nowhere.pth", "task": "addition"}, "merge": {"subject": "planted:induction"},
    "train": {"recipe": "add3", "settings": zoo.SHORT, "progress": False, "name": "walked", "runs_dir": "walked"},
    "census": {"runs": ["nowhere"], "progress": False}, "override": {"config": None, "settings": {"seed": 3}},
    "study": {"name": "nonsense", "seeds": (0,), "settings": zoo.SHORT, "progress": False},
    "certify": {"subject": "planted:induction", "sample": 4}, "selfcheck": {"copies": 0},
    "AttentionTarget": {"name": "x", "mask": torch.ones(3, 3, dtype=torch.bool)},
}  # fmt: skip
"""Public functions, each with arguments that are right or refused at once."""


@pytest.mark.parametrize("name", [name for name in CALLS if name in dir(ag)])
@given(data=st.data())
def test_wrong_arguments_of_a_public_function(name: str, data: st.DataObject) -> None:
    function, usual = getattr(ag, name), CALLS[name]
    offered = [one for one in inspect.signature(function).parameters if one not in ("progress", "copies")]
    wrong = {data.draw(st.sampled_from([*offered, "nonsense"])): data.draw(st.sampled_from(WRONG))}
    before = ambient_state()
    outcome(lambda: function(**(usual | wrong)))
    assert ambient_state() == before


@given(data=st.data())
def test_a_damaged_finding_is_refused(data: st.DataObject) -> None:
    text = ag.lenses.attention("planted:induction", "abcab").to_json()
    whole = json.loads(text)
    field = data.draw(st.sampled_from(list(whole)))
    wrong = data.draw(st.sampled_from([None, 5, "x", [], {}, [1], {"a": 1}, [None], [[]]]))
    less = {key: value for key, value in whole.items() if key != field}
    damage = st.sampled_from([text[: len(text) // 2], json.dumps(less), json.dumps(less | {field: wrong}), "\x00", ""])
    outcome(lambda: ag.Finding.from_json(data.draw(damage)))


# ---------------------------------------------------------------------- training


@pytest.mark.parametrize("around", SURROUNDINGS)
def test_training_in_other_surroundings_gives_the_same_weights(around: str) -> None:
    again = {"name": "again", "settings": zoo.SHORT, "runs_dir": zoo.place("runs"), "progress": False}
    before = ambient_state()
    with surroundings(around):
        run = outcome(lambda: ag.train("add3", **again))
    assert ambient_state() == before
    if not isinstance(run, Refused):
        there, here = (ag.open(where).model.state_dict() for where in (f"run:{zoo.runs() / 'add'}", run))
        assert all(torch.equal(value, here[name]) for name, value in there.items()), f"{around}: other weights"


OTHERS = [
    ("copy8", {}),
    ("grok59", {}),
    ("add5", {}),
    *[("add3", {field: value}) for field, value in zoo.OTHER.items()],
]


@given(request_=st.sampled_from(OTHERS), resume=st.booleans())
def test_a_name_that_another_request_has(request_: tuple[str, dict[str, Any]], resume: bool) -> None:
    recipe, changes = request_
    wished = zoo.SHORT | changes if changes else None
    run = outcome(
        lambda: ag.train(recipe, name="add", settings=wished, runs_dir=zoo.runs(), resume=resume, progress=False)
    )
    assert isinstance(run, Refused), f"{recipe} {changes} was taken for the run that is there"
    assert ag.Run(zoo.runs() / "add").config.recipe == "add3"


# ---------------------------------------------------------------------- names and paths


@pytest.mark.parametrize("name", NAMES_OF_RUNS)
def test_a_run_has_its_name_or_is_refused(name: str) -> None:
    runs = zoo.place("named") / "runs"
    run = outcome(lambda: ag.train("add3", name=name, settings=zoo.SHORT, runs_dir=runs, progress=False))
    listed = [path.name for path in runs.iterdir() if not path.name.startswith(".")] if runs.exists() else []
    assert listed == ([] if isinstance(run, Refused) else [name]), f"{run}: {listed}"
    assert [path.name for path in runs.parent.iterdir()] in ([], ["runs"])


@pytest.mark.parametrize("odd", ODD_FOLDERS)
def test_a_path_that_exists_is_the_path(odd: str, somewhere: Path) -> None:
    where = somewhere / "paths" / odd
    shutil.copytree(zoo.runs() / "add", where / "run")
    shutil.copytree(zoo.hf("gpt2"), where / "model")
    weights = next((where / "run").rglob("*.safetensors"))
    for name in (f"run:{where / 'run'}", f"hf:{where / 'model'}", f"foreign:{weights}?task=addition&n_digits=1"):
        opened = outcome(lambda name=name: ag.open(name))
        assert not isinstance(opened, Refused) or name.startswith("foreign"), opened
    finding = ag.lenses.attention("planted:induction", "abcab")
    for ending in ("json", "csv", "html"):
        outcome(lambda ending=ending: finding.save(str(where / f"x.{ending}")))
        assert (where / f"x.{ending}").stat().st_size > 100


@given(data=st.data())
def test_a_home_folder_is_expanded(somewhere: Path, data: st.DataObject) -> None:
    finding = ag.lenses.attention("planted:induction", "abcab")
    data.draw(
        st.sampled_from([
            lambda: finding.save("~/x.json"), lambda: finding.save(Path("~/x.csv")),
            lambda: ag.runs_directory("~/rr").mkdir(exist_ok=True, parents=True),
            lambda: ag.train("add3", name="home", settings=zoo.SHORT, runs_dir="~/runs", progress=False),
            lambda: ag.export("planted:carry-adder", "transformerlens", "~/x.pth"), lambda: ag.open("hf:~/nowhere"),
            lambda: ag.open("run:~/runs/home"), lambda: ag.open("file:~/nowhere.safetensors"),
            lambda: ag.checkup("~/rr"),
        ]).map(outcome)
    )  # fmt: skip
    assert not list(somewhere.rglob("~"))


@pytest.mark.parametrize("ending", ["png", "svg", "pdf", "jpeg", "html", "json", "csv", "xyz"])
@pytest.mark.parametrize("name", ["planted:induction", pytest.param("hf:tall", marks=pytest.mark.long)])
def test_a_saved_finding_is_what_its_ending_says(name: str, ending: str, somewhere: Path) -> None:
    finding = ag.lenses.attention(zoo.subject(name), {"hf:tall": "The city of Paris"}.get(name, "abcab"))
    path = somewhere / f"saved.{ending}"
    saved = outcome(lambda: finding.save(path))
    assert path.exists() != isinstance(saved, Refused), saved
    if path.exists():
        is_what_its_ending_says(path)
        path.unlink()


# ---------------------------------------------------------------------- folders of Hugging Face


@pytest.mark.parametrize("family", zoo.OPTIONS)
@given(data=st.data())
def test_a_folder_opens_as_the_library_does_or_is_refused(family: str, data: st.DataObject) -> None:
    drawn = {key: data.draw(st.sampled_from(values)) for key, values in zoo.OPTIONS[family].items()}
    chosen = {key: value for key, value in drawn.items() if data.draw(st.booleans())}
    where, model = zoo.folder(family, **chosen)
    subject = outcome(lambda: ag.open(f"hf:{where}"))
    if isinstance(subject, Refused):
        return
    for n in (3, 40):
        tokens = torch.randint(0, zoo.D_VOCAB, (2, n), generator=torch.Generator().manual_seed(n))
        ours = outcome(lambda tokens=tokens: subject.run(tokens)[0])
        if isinstance(ours, Refused):
            assert "window" in ours.line, f"{chosen}: {ours.line}"
            return
        theirs = model(tokens).logits.detach()
        assert (ours - theirs).abs().max() < 1e-3, f"{chosen}: other logits for {n} tokens"
    dtype = data.draw(st.sampled_from(zoo.DTYPES[1:]))
    half, library = subject.to_dtype(dtype).run(tokens)[0].float(), model.to(dtype)(tokens).logits.detach().float()
    spread = (library - theirs).abs().max()
    assert (half - library).abs().max() <= 3 * spread + 1e-2, f"{chosen} in {dtype}"


@pytest.mark.parametrize("damage", zoo.DAMAGES)
def test_a_damaged_folder_says_what_is_wrong(damage: str) -> None:
    where, word = zoo.damaged(damage), zoo.DAMAGES[damage][2]

    def use() -> str:
        subject = ag.open(f"hf:{where}")
        ag.lenses.logit(subject, "The city").to_json()
        return subject.generate("The city", 6)

    result = outcome(use)
    assert isinstance(result, Refused) == bool(word), f"{damage}: {result!r}"
    assert not word or word in result.line, result.line


def test_generation_ends_where_the_library_ends() -> None:
    where = zoo.damaged("several end tokens")
    subject, library = ag.open(f"hf:{where}"), zoo.transformers.AutoModelForCausalLM.from_pretrained(where)
    for text in ("The city", "Rome", "a"):
        tokens = subject.to_tokens(text)
        theirs = library.generate(tokens, max_new_tokens=8, do_sample=False, pad_token_id=2)[0, tokens.shape[1] :]
        ends = library.generation_config.eos_token_id
        expected = [token for token in theirs.tolist() if token not in ends]
        assert subject.generate(text, 8) in (subject.to_string(torch.tensor(expected)), subject.to_string(theirs))


# ---------------------------------------------------------------------- tokens as people name them


@pytest.fixture(params=["hf:gpt2", "hf:ends", "hf:llama"])
def speaker(request: pytest.FixtureRequest) -> Any:
    """A model with a tokenizer."""
    return zoo.subject(request.param)


@pytest.mark.parametrize("text", ["The city of Paris", "1 a 1a", "a é 東", "Rome"])
def test_the_tokens_of_a_text_can_be_read(speaker: Any, text: str) -> None:
    finding = outcome(lambda: ag.lenses.logit(speaker, [text], top=40))
    assert not isinstance(finding, Refused), finding
    check_finding(finding)
    tokens_fit(finding, {"inputs": [text]})


def test_every_token_has_a_label_of_its_own(speaker: Any) -> None:
    finding = ag.lenses.logit(speaker, "The", top=zoo.D_VOCAB)
    assert len({row["token"] for row in finding["top"][-1][-1]}) == zoo.D_VOCAB


@pytest.mark.parametrize("word", [" Paris", " Rome", " city", "a", "The"])
def test_a_target_is_the_word_that_was_given(speaker: Any, word: str) -> None:
    finding = outcome(lambda: ag.lenses.logit(speaker, ["The city of"], target=word))
    assert not isinstance(finding, Refused), finding
    assert word.strip() in str(finding["target"]), f"target {word!r} was read as {finding['target']!r}"


def test_two_words_are_told_apart(speaker: Any) -> None:
    finding = outcome(lambda: ag.lenses.patch(speaker, *zoo.PAIR, target=" city", rival=" stands"))
    assert not isinstance(finding, Refused), finding
