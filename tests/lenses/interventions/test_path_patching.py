"""Path patching: against two plain runs for each path on every family, and on planted paths."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import algoscope as ag
from algoscope.core.errors import AlgoscopeError, ConfigError, PairingError, SubjectError, UnknownNameError
from algoscope.core.finding import Finding
from algoscope.core.sites import find_site
from algoscope.lenses.interventions import path_patching
from algoscope.planted.models import shuffled
from algoscope.planted.table import PLANTED
from algoscope.subjects.cache import ActivationCache
from algoscope.subjects.edits import Patch
from algoscope.subjects.huggingface import convert
from algoscope.subjects.planted import subject_of
from algoscope.subjects.subject import Subject
from algoscope.subjects.text import Letters, Numbers
from hf_models import CONFIGS, D_VOCAB, make
from random_models import SUMS, subject

CAUSAL = [family for family in SUMS if family != "not causal"]
PAIRS = (["12+34", "55+46"], ["19+34", "57+46"])
TEXTS = (["3 1 4 1 5 9"], ["3 8 4 1 7 9"])
INDUCTION = ("abcda", "cbada")  # after a came b; after a came d


def of_library(family: str) -> Subject:
    return Subject(family, convert(make(family)), text=Numbers(D_VOCAB)).to_dtype(torch.float64)


def by_sender(found: Finding) -> dict[str, float]:
    return {row["sender"]: row["recovered"] for row in found["senders"]}


# ---------------------------------------------------------------------- the plain way


def logits_of_path(
    model: Subject,
    tokens: torch.Tensor,
    base: ActivationCache,
    other: ActivationCache,
    sender: str,
    receiver: str,
    mlps: str,
) -> torch.Tensor:
    """Logits [batch pos d_vocab] of the base input when the receiver alone hears the sender's other output.

    The first run holds every head's `z` and every feed-forward's output at the base run, but for the sender's; the
    second changes what the receiver's weights made of what they then read.
    """
    hold = []
    for layer in range(model.cfg.n_layers):
        z = base["z", layer].clone()
        if sender.startswith(f"L{layer}H"):
            head = int(sender.partition("H")[2])
            z[:, :, head] = other["z", layer][:, :, head]
        hold.append(Patch(("z", layer), value=z))
        if model.cfg.d_mlp is not None and (mlps == "frozen" or sender == f"L{layer} MLP"):
            value = (other if sender == f"L{layer} MLP" else base)["mlp_out", layer]
            hold.append(Patch(("mlp_out", layer), value=value))
    if receiver == "logits":
        return model.run(tokens, edits=hold)[0]
    if receiver.endswith("MLP"):
        layer, head = int(receiver[1:-4]), None
        kinds = ["pre", "pre_linear"] if model.cfg.gated_mlp else ["pre"]
    else:
        layer, head = (int(part) for part in receiver[1:-2].split("H"))
        kinds = [receiver[-1]]
    _, heard = model.run(tokens, record=[(kind, layer) for kind in kinds], edits=hold)
    return model.run(tokens, edits=[Patch((kind, layer), value=heard[kind, layer], head=head) for kind in kinds])[0]


def check_paths(
    model: Subject, clean: list[str], corrupt: list[str], receiver: str, mlps: str, direction: str, **named: str
) -> int:
    """Every sender's recovered share of the logit difference is that of two plain runs. How many moved anything."""
    found = ag.lenses.path_patching(model, clean, corrupt, receiver=receiver, mlps=mlps, direction=direction, **named)
    if model.has_task:
        whole = [
            model.to_tokens([model.task.prompt(t) + model.task.expected(t) for t in ts]) for ts in (clean, corrupt)
        ]
        start = model.task.prompt_length
        place = start - 1 + (whole[0] != whole[1])[:, start:].int().argmax(dim=1)
        here = torch.arange(len(clean))
        target, rival = (tokens[here, place + 1] for tokens in whole)
        tokens = [each[:, :-1] for each in whole]
    else:
        tokens = [model.to_tokens(texts) for texts in (clean, corrupt)]
        here, place = torch.arange(len(clean)), tokens[0].shape[1] - 1
        target, rival = (int(named[name]) for name in ("target", "rival"))

    def read(logits: torch.Tensor) -> torch.Tensor:
        return logits[here, place, target] - logits[here, place, rival]

    top, bottom = (read(model(each)) for each in tokens)
    base, other = tokens[::-1] if direction == "denoise" else tokens
    written = [(kind, layer) for kind in ("z", "mlp_out") for layer in range(model.cfg.n_layers)]
    caches = [
        model.run(each, record=written if model.cfg.d_mlp else written[: len(written) // 2])[1]
        for each in (base, other)
    ]
    moved = 0
    for row in found["senders"]:
        patched = read(logits_of_path(model, base, *caches, row["sender"], receiver, mlps))
        expected = (patched - bottom) / (top - bottom)
        np.testing.assert_allclose(row["per_example"], expected, atol=1e-10, err_msg=row["sender"])
        assert row["recovered"] == pytest.approx(float(expected.mean()))
        moved += bool((patched - (bottom if direction == "denoise" else top)).abs().max() > 1e-6)
    return moved


@pytest.mark.parametrize(
    ("family", "mlps"),
    [
        pytest.param(
            family, mlps, marks=[pytest.mark.long] if (i + j) % 2 else []
        )  # each family one way, and the other
        for i, family in enumerate(CAUSAL)
        for j, mlps in enumerate(["frozen", "free"])
    ],
)
def test_every_path_is_that_of_two_plain_runs_on_our_own_shapes(family: str, mlps: str) -> None:
    model = subject(family)  # in float64
    receivers = ["L1H0.q", "L1H1.k", "L1H0.v", "logits", *(["L1 MLP"] if model.cfg.d_mlp else [])]
    for receiver in receivers:
        for direction in ("denoise", "noise"):
            assert check_paths(model, *PAIRS, receiver, mlps, direction) > 0


@pytest.mark.parametrize("family", CONFIGS)
def test_every_path_is_that_of_two_plain_runs_on_every_library_family(family: str) -> None:
    model = of_library(family)
    last = model.cfg.n_layers - 1
    for receiver in (f"L{last}H2.q", f"L{last}H1.k", f"L{last}H0.v", f"L{last} MLP", "logits"):
        assert check_paths(model, *TEXTS, receiver, "frozen", "denoise", target="5", rival="9") > 0
    assert check_paths(model, *TEXTS, "logits", "free", "noise", target="5", rival="9") > 0


@pytest.mark.parametrize("receiver", ["L1H0.k", "L1 MLP", "logits"])
@pytest.mark.parametrize("mlps", ["frozen", "free"])
def test_every_path_to_answers_of_several_tokens_is_that_of_two_plain_runs(receiver: str, mlps: str) -> None:
    model = Subject("letters", subject().model, text=Letters("abcdefghijklmn"))
    clean, corrupt, answers = ["abcab", "bccdb"], ["abdaf", "eccaf"], ["bbb", "ff"]
    options = dict(zip(("target", "rival"), answers, strict=True))
    found = ag.lenses.path_patching(model, clean, corrupt, receiver=receiver, mlps=mlps, **options)
    written = [(kind, layer) for kind in ("z", "mlp_out") for layer in range(2)]
    _, source = model.run(model.to_tokens(clean), record=written)
    runs = [model.to_tokens([text + answer[:-1] for text in corrupt]) for answer in answers]
    bases = [model.run(tokens, record=written)[1] for tokens in runs]
    sent = []  # the clean run at the input, the base run at the answer
    for base in bases:
        values = {site: torch.cat([source[site], base[site][:, 5:]], dim=1) for site in base}
        sent.append(
            ActivationCache({find_site(site, model.sites): value for site, value in values.items()}, model.sites)
        )

    def read(logits: list[torch.Tensor]) -> torch.Tensor:
        sums = []
        for one, answer in zip(logits, answers, strict=True):
            log_p = one[:, -len(answer) :].log_softmax(dim=-1)
            sums.append(sum(log_p[:, i, token] for i, token in enumerate(model.to_tokens(answer)[0])))
        return sums[0] - sums[1]

    top = read([model(model.to_tokens([text + answer[:-1] for text in clean])) for answer in answers])
    bottom = read([model(tokens) for tokens in runs])
    for row in found["senders"]:
        name, each = row["sender"], zip(runs, bases, sent, strict=True)
        patched = read([logits_of_path(model, *run, name, receiver, mlps) for run in each])
        np.testing.assert_allclose(row["per_example"], (patched - bottom) / (top - bottom), atol=1e-10, err_msg=name)


def test_senders_in_many_stacks_are_senders_in_one(monkeypatch: pytest.MonkeyPatch) -> None:
    model = subject("alibi")
    whole = ag.lenses.path_patching(model, *PAIRS, receiver="L2H1.k")
    monkeypatch.setattr(path_patching, "STACK", 40)  # two senders of two inputs of nine tokens
    assert by_sender(ag.lenses.path_patching(model, *PAIRS, receiver="L2H1.k")) == pytest.approx(
        by_sender(whole), abs=1e-12
    )


def test_without_norms_paths_to_the_logits_are_what_attribution_says() -> None:
    model = subject("bare")  # sums of what is written: the paths are the differences of the parts
    found = ag.lenses.path_patching(model, *(side[:1] for side in PAIRS), target="5", rival="0")
    clean, corrupt = (
        {part["component"]: part["contribution"] for part in answer["parts"]}
        for answer in (ag.lenses.attribution(model, side[:1], target="5", rival="0")["answers"][0] for side in PAIRS)
    )
    gap = found["baselines"]["clean"] - found["baselines"]["corrupt"]
    assert found["target"] == ["5"]
    expected = {name: (clean[name] - corrupt[name]) / gap for name in by_sender(found)}
    assert by_sender(found) == pytest.approx(expected, abs=1e-10)


# ---------------------------------------------------------------------- what was planted


@pytest.mark.parametrize(("direction", "carried", "base"), [("denoise", 1, 0), ("noise", 0, 1)])
def test_the_induction_head_hears_its_keys_from_the_previous_token_head(
    direction: str, carried: float, base: float
) -> None:
    def found(receiver: str) -> dict[str, float]:
        finding = ag.lenses.path_patching("planted:induction", *INDUCTION, receiver=receiver, direction=direction)
        return by_sender(finding)

    assert found("L1H0.k") == pytest.approx({"L0H0": base, "L0H1": carried}, abs=1e-5)
    for part in ("L1H0.v", "L1H0.q", "L1H1.k"):
        assert found(part) == pytest.approx({"L0H0": base, "L0H1": base}, abs=1e-5)
    to_logits = {"L0H0": base, "L0H1": base, "L1H0": carried, "L1H1": base}
    assert found("logits") == pytest.approx(to_logits, abs=1e-5), "no path goes past the induction head"


def test_what_is_critical_is_named_in_both_directions() -> None:
    for direction in ("denoise", "noise"):
        found = ag.lenses.path_patching("planted:induction", *INDUCTION, receiver="L1H0.k", direction=direction)
        assert (found["largest"]["sender"], found["critical"]) == ("L0H1", ["L0H1"])
        assert "L0H1 -> L1H0.k" in found.claim
        nothing = ag.lenses.path_patching("planted:induction", *INDUCTION, receiver="L1H0.v", direction=direction)
        assert nothing["critical"] == []


def adder_paths(clean: str, corrupt: str, receiver: str, mlps: str = "frozen") -> dict[str, float]:
    found = ag.lenses.path_patching("planted:carry-adder", clean, corrupt, receiver=receiver, mlps=mlps)
    return {sender: value for sender, value in by_sender(found).items() if abs(value) > 1e-5}


def test_the_carry_adder_s_paths_are_its_mechanism() -> None:
    plain = ("123+456", "121+456")  # no column reaches ten
    assert adder_paths(*plain, "logits") == pytest.approx({"L0H0": 1})
    assert adder_paths(*plain, "L1 MLP") == {}
    wraps = ("005+005", "005+004")  # the units reach ten, so the last feed-forward takes ten away
    assert adder_paths(*wraps, "L1 MLP").keys() == {"L0H0"}
    carries = ("005+005", "000+000")  # the answers differ in the tens alone
    assert adder_paths(*carries, "L0 MLP") == pytest.approx({"L0H1": 1})
    assert adder_paths(*carries, "logits") == pytest.approx({"L0 MLP": 1}), "the carry is written by the feed-forward"
    through = adder_paths(*carries, "logits", mlps="free")
    assert through == pytest.approx({"L0H1": 1, "L0 MLP": 1}), "which hears it from the head"


@pytest.mark.parametrize("seed", range(5))
def test_once_the_keys_are_shuffled_the_path_carries_nothing(seed: int) -> None:
    planted = PLANTED.load("induction")()
    options = {"receiver": "L1H0.k", "target": "b", "rival": "e"}  # after a came e
    before = ag.lenses.path_patching(subject_of(planted, "induction"), "abcda", "cbaea", **options)
    assert by_sender(before)["L0H1"] == pytest.approx(1)
    keys = planted.model.block(1).attn.k.weight
    order = torch.randperm(keys.numel(), generator=torch.Generator().manual_seed(seed))
    keys.copy_(keys.flatten()[order].view_as(keys))
    found = ag.lenses.path_patching(subject_of(planted, "shuffled keys"), "abcda", "cbaea", **options)
    assert found["critical"] == []
    assert abs(by_sender(found)["L0H1"]) < 0.2


@pytest.mark.parametrize("seed", range(5))
def test_a_shuffled_model_that_cannot_tell_the_inputs_apart_is_refused(seed: int) -> None:
    destroyed = subject_of(shuffled(PLANTED.load("carry-adder")(), seed), "shuffled")
    with pytest.raises(PairingError, match="does not separate '005\\+005' from '000\\+000'"):
        ag.lenses.path_patching(destroyed, "005+005", "000+000")


def test_in_random_weights_no_path_to_one_head_carries_the_answer() -> None:
    for seed in range(5):
        for receiver in ("L1H0.k", "L1H0.q", "L1H0.v"):
            found = ag.lenses.path_patching(subject(seed=seed), *(side[:1] for side in PAIRS), receiver=receiver)
            assert found["critical"] == []


# ---------------------------------------------------------------------- what it says


def test_panels_have_a_cell_for_each_sender_and_none_behind_the_receiver() -> None:
    found = ag.lenses.path_patching(subject(), *PAIRS, receiver="L1 MLP")
    grid, bars = found.panels
    assert grid.axes[1].labels == ("H0", "H1", "MLP")
    assert np.isnan(grid.values).tolist() == [[False] * 3, [False, False, True]]
    assert bars.axes[0].labels == ("L0H0", "L0H1", "L0 MLP", "L1H0", "L1H1") == tuple(by_sender(found))
    np.testing.assert_array_equal(grid.values[~np.isnan(grid.values)], bars.values)
    assert bars.values.tolist() == list(by_sender(found).values())
    assert (grid.zero, grid.one) == ("as the corrupt run", "as the clean run")
    noise = ag.lenses.path_patching(subject(), *PAIRS, receiver="L1 MLP", direction="noise")
    assert [finding.panels[1].marks[0].strong for finding in (found, noise)] == ["above", "below"]
    assert [finding.panels[1].marks[0].at for finding in (found, noise)] == [0.5, 0.5]


def test_the_command_writes_json_and_a_figure(run, tmp_path: Path) -> None:
    arguments = ["lens", "path_patching", "planted:induction", "--clean", "abcda", "--corrupt", "cbada"]
    out_file = tmp_path / "paths.html"
    code, out, err = run(*arguments, "--receiver", "L1H0.k", "--out", out_file, "--json", "--quiet")
    assert code == 0, err
    found = json.loads(out)
    assert (found["receiver"], found["mlps"], found["direction"], found["metric"]) == (
        "L1H0.k", "frozen", "denoise", "logit_diff",
    )  # fmt: skip
    assert [row["sender"] for row in found["senders"]] == ["L0H0", "L0H1"]
    assert found["largest"] == {"sender": "L0H1", "recovered": pytest.approx(1)}
    assert found["baselines"] == {"clean": pytest.approx(20), "corrupt": pytest.approx(-20)}
    assert "Plotly" in out_file.read_text()
    code, out, _ = run(*arguments, "--metric", "kl", "--mlps", "free", "--json", "--quiet")
    assert (code, json.loads(out)["largest"]["sender"]) == (0, "L1H0")
    for wrong in (["--receiver", "L9H0.k"], ["--mlps", "melted"], ["--receiver", "L0H0.q"]):
        code, _, err = run(*arguments, *wrong)
        assert (code, err.count("\n")) == (2, 1)


@pytest.mark.parametrize("text", ["l1 mlp", "L1MLP", "L1.mlp", " L1 MLP "])
def test_a_receiver_may_be_written_in_several_ways(text: str) -> None:
    assert ag.lenses.path_patching(subject(), *PAIRS, receiver=text)["receiver"] == "L1 MLP"


@pytest.mark.parametrize(
    ("family", "options", "error", "words"),
    [
        (
            "reference",
            {"receiver": "L2H0.q"},
            ConfigError,
            r"no receiver 'L2H0.q': write L0H0.q to L1H1.q.*L1 MLP.*logits",
        ),
        ("reference", {"receiver": "L1H2.q"}, ConfigError, "'L1H2.q'"),
        ("reference", {"receiver": "L1H0"}, ConfigError, "'L1H0'"),
        ("grouped", {"receiver": "L1H2.k"}, ConfigError, r"'L1H2.k'.*L1H3.q.*L1H1.k or .v"),
        ("bare", {"receiver": "L1 MLP"}, ConfigError, r"'L1 MLP'.*or logits"),
        ("reference", {"receiver": "L0H0.v"}, ConfigError, "comes before L0H0.v"),
        ("parallel", {"receiver": "L0 MLP"}, ConfigError, "comes before L0 MLP"),
        ("reference", {"mlps": "thawed"}, UnknownNameError, "mlps of .* 'thawed'"),
        ("reference", {"direction": "sideways"}, UnknownNameError, "sideways"),
        ("reference", {"metric": "vibes"}, UnknownNameError, "vibes"),
        ("reference", {"metric": "exact_match"}, PairingError, "does not separate"),
        ("not causal", {}, SubjectError, "not causal"),
    ],
)
def test_bad_input_is_one_line(family: str, options: dict, error: type[AlgoscopeError], words: str) -> None:
    with pytest.raises(error, match=words) as raised:
        ag.lenses.path_patching(subject(family), "12+34", "19+34", **options)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("clean", "corrupt", "words"),
    [("abcda", "abcd", "does not separate"), (["abcda"], ["cbada", "cbada"], "1 clean and 2 corrupt")],
)
def test_texts_that_cannot_be_compared_are_one_line(clean, corrupt, words: str) -> None:
    with pytest.raises(PairingError, match=words) as raised:
        ag.lenses.path_patching("planted:induction", clean, corrupt)
    assert "\n" not in str(raised.value)
