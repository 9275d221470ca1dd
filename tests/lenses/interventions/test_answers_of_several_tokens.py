"""Answers of several tokens are teacher-forced: against plain runs of input and answer, one for each cell."""

from functools import partial

import numpy as np
import pytest
import torch

import algoscope as ag
from algoscope.core.errors import AlgoscopeError
from algoscope.subjects.edits import Patch
from algoscope.subjects.subject import Subject
from algoscope.subjects.text import Letters
from random_models import subject

CLEANS, CORRUPTS = ["abcab", "bccdb"], ["abdaf", "eccaf"]  # the models repeat the last letter
TARGET, RIVAL = "bbb", "ff"
SITES = ["resid_pre", "head", "head_position", "mlp_out", "pattern", "k"]
SITE = {"head": "z", "head_position": "z"}
METRICS = ("logit_diff", "probability", "kl", "exact_match")


def reader(family: str = "reference") -> Subject:
    return Subject(family, subject(family).model, text=Letters("abcdefghijklmn"))


def forced(model: Subject, texts: list[str], answer: str) -> torch.Tensor:
    return model.to_tokens([text + answer[:-1] for text in texts])


def plain_metric(metric: str, model: Subject, logits_of, targets: list[str], rivals: list[str]) -> torch.Tensor:
    """From the logits of an edited run of the input and an answer, `logits_of(answer)` [batch pos d_vocab]."""

    def log_probability(answer: str) -> torch.Tensor:
        log_p, ids = logits_of(answer)[:, -len(answer) :].log_softmax(-1), model.to_tokens(answer)[0]
        return sum(log_p[:, i, token] for i, token in enumerate(ids))

    if metric == "kl":
        reads = slice(-len(targets[0]), None)
        clean = model(forced(model, CLEANS, targets[0]))[:, reads].log_softmax(-1)
        return (clean.exp() * (clean - logits_of(targets[0])[:, reads].log_softmax(-1))).sum((1, 2))
    if metric == "exact_match":
        right = [(logits_of(one)[:, -len(one) :].argmax(-1) == model.to_tokens(one)[0]).all(dim=1) for one in targets]
        return torch.stack(right).any(dim=0).double()
    target = sum(log_probability(answer).exp() for answer in targets)
    if metric == "probability":
        return target
    return target.log() - sum(log_probability(answer).exp() for answer in rivals).log()


def edits_of_cell(sweep: str, layer: int, where: tuple[int, ...], values) -> list[Patch]:
    """One edit for each position of the input."""
    kind, n = SITE.get(sweep, sweep), len(CLEANS[0])
    key, value = (kind, layer), values[SITE.get(sweep, sweep), layer]
    if sweep in ("resid_pre", "mlp_out"):
        return [Patch(key, value=value[:, where[0]], pos=where[0])]
    head = where[0]
    if sweep == "head_position":
        return [Patch(key, value=value[:, where[1], head], pos=where[1], head=head)]
    if sweep == "pattern":
        return [Patch(key, value=value[:, head, pos, :n], pos=pos, key=slice(0, n), head=head) for pos in range(n)]
    return [Patch(key, value=value[:, pos, head], pos=pos, head=head) for pos in range(n)]


def check(model: Subject, metric: str, direction: str, targets: list[str], rivals: list[str], sites: list[str]) -> None:
    found = ag.lenses.patch(
        model, CLEANS, CORRUPTS, target=targets, rival=rivals, metric=metric, direction=direction, sites=sites
    )

    def run(texts: list[str], answer: str, edits: list[Patch] | None = None) -> torch.Tensor:
        return model.run(forced(model, texts, answer), edits=edits or [])[0]

    top, bottom = (plain_metric(metric, model, partial(run, texts), targets, rivals) for texts in (CLEANS, CORRUPTS))
    base, other = (CORRUPTS, CLEANS) if direction == "denoise" else (CLEANS, CORRUPTS)
    keys = [(SITE.get(sweep, sweep), layer) for sweep in sites for layer in range(model.cfg.n_layers)]
    _, values = model.run(model.to_tokens(other), record=keys)
    assert found["baselines"] == pytest.approx({"clean": float(top.mean()), "corrupt": float(bottom.mean())}, abs=1e-10)
    for sweep in sites:
        measured = np.array(found["per_example"][sweep])
        for layer, *where in np.ndindex(measured.shape[1:]):
            edits = edits_of_cell(sweep, layer, tuple(where), values)
            patched = plain_metric(metric, model, partial(run, base, edits=edits), targets, rivals)
            expected = (patched - bottom) / (top - bottom)
            np.testing.assert_allclose(measured[:, layer, *where], expected, atol=1e-10, err_msg=sweep)


@pytest.mark.parametrize(
    ("family", "direction"), [("reference", "denoise"), ("grouped", "noise"), ("both norms", "denoise")]
)
def test_every_cell_is_that_of_plain_runs(family: str, direction: str) -> None:
    sites = SITES if family == "reference" else ["resid_pre", "head"]
    check(reader(family), "logit_diff", direction, [TARGET], [RIVAL], sites)


@pytest.mark.parametrize("metric", ["probability", "kl"])
def test_every_metric_is_that_of_plain_runs(metric: str) -> None:
    check(reader(), metric, "denoise", [TARGET], [RIVAL], ["resid_pre", "head"])


def test_sets_of_answers_of_any_length() -> None:
    for metric in ("logit_diff", "probability"):
        check(reader(), metric, "denoise", [TARGET, "m", "ka"], [RIVAL, "l"], ["resid_pre", "head"])


def test_the_whole_answer_must_be_the_most_likely() -> None:
    model = reader()
    own = [model.to_string(model.generate_tokens(model.to_tokens(text), 3)[0]) for text in (CLEANS[0], CORRUPTS[0])]
    found = ag.lenses.patch(model, CLEANS[0], CORRUPTS[0], target=own[0], metric="exact_match", sites=["resid_pre"])
    assert found["baselines"] == {"clean": 1.0, "corrupt": 0.0}
    assert (found["target"], found["rival"]) == ([own[0]], [own[1]]), "the other is a prediction of as many tokens"
    wrong = own[0][:2] + next(letter for letter in "abc" if letter != own[0][2])
    either = ag.lenses.patch(
        model, CLEANS[0], CORRUPTS[0], target=[wrong, own[0]], metric="exact_match", sites=["resid_pre"]
    )
    assert either["baselines"] == {"clean": 1.0, "corrupt": 0.0}


def test_one_token_is_the_same_forced_or_not() -> None:
    model, options = reader(), {"target": ["f", "m"], "rival": "i", "sites": ["head", "resid_pre"]}
    for metric in ("logit_diff", "probability"):
        plain = ag.lenses.patch(model, CLEANS, CORRUPTS, metric=metric, **options)
        targets, rivals = options["target"], [options["rival"]]
        tops = plain_metric(metric, model, lambda one: model(forced(model, CLEANS, one)), targets, rivals)
        assert plain["baselines"]["clean"] == pytest.approx(float(tops.mean()), abs=1e-12)
    longer = ag.lenses.patch(model, CLEANS, CORRUPTS, **options | {"target": ["f", "m", "fg", "mab"]})
    shorter = ag.lenses.patch(model, CLEANS, CORRUPTS, **options)
    assert longer["per_example"] == shorter["per_example"], "an answer that continues another counts in it"


@pytest.mark.parametrize("n_steps", [1, 3])
@pytest.mark.parametrize("metric", ["logit_diff", "probability", "kl"])
def test_gradients_are_slopes_of_the_metric(metric: str, n_steps: int) -> None:
    model, step = reader(), 1e-5
    targets = [TARGET] if metric == "kl" else [TARGET, "m"]
    found = ag.lenses.attribution_patching(
        model, CLEANS, CORRUPTS, target=targets, rival=RIVAL, metric=metric, n_steps=n_steps, sites=["head"],
        compare=False, direction="noise",
    )  # fmt: skip
    clean, corrupt = (model.run(model.to_tokens(texts), record=[("z", 1)])[1]["z", 1] for texts in (CLEANS, CORRUPTS))

    def measured(texts: list[str], edits: list[Patch]) -> torch.Tensor:
        def run(answer: str) -> torch.Tensor:
            return model.run(forced(model, texts, answer), edits=edits)[0]

        return plain_metric(metric, model, run, targets, [RIVAL])

    top, bottom = measured(CLEANS, []), measured(CORRUPTS, [])
    for head in range(2):
        slope = torch.zeros(2, dtype=torch.float64)
        for number in range(n_steps):
            sides = []
            for sign in (1, -1):
                moved = clean + (corrupt - clean) * ((number + 0.5) / n_steps if n_steps > 1 else 0.0)
                moved[:, :, head] += sign * step * (corrupt - clean)[:, :, head]
                sides.append(measured(CLEANS, [Patch(("z", 1), value=moved[:, pos], pos=pos) for pos in range(5)]))
            slope += (sides[0] - sides[1]) / (2 * step) / n_steps
        cells = np.array(found["per_example"]["head"])[:, 1, head]
        np.testing.assert_allclose(cells - 1, slope / (top - bottom), rtol=1e-5, atol=1e-7)


def test_attribution_is_exact_where_the_last_stream_is_linear() -> None:
    found = ag.lenses.attribution_patching(reader(), CLEANS, CORRUPTS, target=TARGET, rival=RIVAL, sites=SITES)
    assert set(found["agreement"]) == set(SITES)
    exact = ag.lenses.patch(reader(), CLEANS, CORRUPTS, target=TARGET, rival=RIVAL, sites=SITES)
    for sweep in SITES:
        np.testing.assert_array_equal(found[f"{sweep}, exact"].values, exact[sweep].values)


def test_inputs_of_different_length_and_the_sentence_about_it() -> None:
    found = ag.lenses.patch(reader(), "abcab", "abdcaf", target=TARGET, rival=RIVAL, sites=["resid_pre"])
    assert [label.partition("_")[0] for label in found["resid_pre"].axes[1].labels] == list("abdcaf")
    assert np.isnan(found["resid_pre"].values[:, 2]).all()
    assert "teacher-forced" in found.about
    assert "teacher-forced" not in ag.lenses.patch(reader(), "abcab", "abdaf", sites=["resid_pre"]).about


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"target": "fgh", "metric": lambda logits: logits[:, -1, 1]}, "write the answer's tokens into the inputs"),
        ({"target": ["fgh", "ab"], "metric": "kl"}, "kl follows the tokens of one target"),
        ({"target": "fghabcd"}, "more than the context"),
        ({"target": "fg!"}, "not in the alphabet"),
        ({"target": ""}, "0 tokens"),
        ({"target": "fg", "rival": "fg"}, "does not separate"),
    ],
)
def test_what_cannot_be_measured_is_one_line(options: dict, words: str) -> None:
    for lens in (ag.lenses.patch, ag.lenses.attribution_patching, ag.lenses.path_patching):
        with pytest.raises(AlgoscopeError, match=words) as raised:
            lens(reader(), CLEANS, CORRUPTS, **options)
        assert "\n" not in str(raised.value)


def test_with_a_task_an_answer_is_one_token() -> None:
    with pytest.raises(AlgoscopeError, match="'12' is 2 tokens"):
        ag.lenses.patch(subject(), "12+34", "12+45", target="12")


def test_on_the_command_line(run) -> None:
    pair = ("planted:induction", "--clean", "abcda", "--corrupt", "cbada", "--target", "bcd", "--rival", "dab")
    for name, options in (("patch", ("--sites", "head")), ("attribution-patching", ()), ("path-patching", ())):
        code, out, err = run("lens", name, *pair, *options, "--quiet")
        assert (code, err) == (0, "")
        assert "L1H0" in out
