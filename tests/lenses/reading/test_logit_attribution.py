"""Direct logit attribution: parts that add up on every family, and what was planted found in them."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import algoscope as ag
from algoscope.core.errors import AlgoscopeError, ConfigError, SubjectError, VocabularyError
from algoscope.planted.models import shuffled
from algoscope.planted.table import PLANTED
from algoscope.subjects.huggingface import convert
from algoscope.subjects.planted import subject_of
from algoscope.subjects.subject import Subject
from algoscope.subjects.text import Numbers
from hf_models import CONFIGS, D_VOCAB, make, save
from random_models import SUMS, subject

NUMBERS = "3 1 4 1 5 9 2 6 5 3 5"
PAIR = ["12+34", "99+1"]
REPEATED = ["qwertyq", "abcdeabcd", "xyzxy"]


def of_library(family: str, dtype: torch.dtype, seed: int = 0) -> Subject:
    return Subject(family, convert(make(family, seed)), text=Numbers(D_VOCAB)).to_dtype(dtype)


def parts_of(facts: dict) -> dict[str, float]:
    return {part["component"]: part["contribution"] for part in facts["parts"]}


# ---------------------------------------------------------------------- the sum


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("family", CONFIGS)
def test_parts_add_up_to_the_logit_difference_on_every_family(family: str, dtype: torch.dtype) -> None:
    model = of_library(family, dtype)
    for seed in range(3):
        text = " ".join(map(str, np.random.default_rng(seed).integers(D_VOCAB, size=12)))
        facts = ag.lenses.attribution(model, [text]).facts
        logits = model(model.to_tokens(text))[0, -1].double()
        best = logits.topk(2).values
        size = sum(map(abs, parts_of(facts).values()))
        bound = 1e-10 if dtype == torch.float64 else 1e-5 * size
        assert facts["logit_difference"] == pytest.approx(float(best[0] - best[1]), abs=bound)
        assert abs(facts["sum"] - facts["logit_difference"]) <= bound
        assert facts["sum"] == pytest.approx(sum(parts_of(facts).values()))


@pytest.mark.parametrize("family", SUMS)
def test_parts_add_up_at_every_answer_position_on_our_own_shapes(family: str) -> None:
    for dtype, bound in ((torch.float64, 1e-10), (torch.float32, 1e-5)):
        model = subject(family, dtype=dtype)
        found = ag.lenses.attribution(model, PAIR)
        assert len(found["answers"]) == 2 * 4
        for answer in found["answers"]:
            size = max(1.0, sum(map(abs, parts_of(answer).values())))
            assert abs(answer["sum"] - answer["logit_difference"]) <= bound * size


def by_hand(model: Subject, tokens: torch.Tensor, place: int, direction: torch.Tensor) -> dict[str, float]:
    """The formula with the weights themselves: each part, centred, over the scale, along gamma * direction."""
    cfg, net = model.cfg, model.model
    _, cache = model.run_with_cache(tokens)
    written = {kind: cache[kind][0, place] for kind in ("embed", "pos_embed") if f"hook_{kind}" in set(cache)}
    for layer in range(cfg.n_layers):
        w_o = net.block(layer).attn.o.weight.unflatten(1, (cfg.n_heads, -1))
        for head in range(cfg.n_heads):
            written[f"L{layer}H{head}"] = w_o[:, head] @ cache["z", layer][0, place, head]
        if net.block(layer).attn.o.bias is not None:
            written[f"L{layer} attn bias"] = net.block(layer).attn.o.bias
        if cfg.norms in ("output", "both"):  # what attention adds is normalised: RMS in every family that has it
            norm = net.block(layer).ln1 if cfg.norms == "output" else net.block(layer).ln1_post
            ours = [name for name in written if name.startswith(f"L{layer}")]
            size = (sum(written[name] for name in ours).pow(2).mean() + cfg.eps).sqrt()
            written |= {name: written[name] / size * norm.weight for name in ours}
        if cfg.d_mlp is not None:
            written[f"L{layer} MLP"] = cache["mlp_out", layer][0, place]
    found = {}
    final = cache["resid_post", -1][0, place]
    torch.testing.assert_close(sum(written.values()), final)
    for name, part in written.items():
        if cfg.normalization_type == "LN":
            part, final = part - part.mean(), final - final.mean()
        if cfg.normalization_type is not None:
            part = part / (final.pow(2).mean() + cfg.eps).sqrt() * net.ln_final.weight
        found[name] = float(part @ net.W_U.mT @ direction)
    if cfg.normalization_type == "LN" or net.b_U is not None:
        constant = 0 if net.b_U is None else net.b_U @ direction
        constant += net.ln_final.bias @ net.W_U.mT @ direction if cfg.normalization_type == "LN" else 0
        found["final bias"] = float(constant)
    return found


@pytest.mark.parametrize("family", [*CONFIGS, *SUMS])
def test_each_part_is_the_formula_s(family: str) -> None:
    if family in SUMS:
        model, text = subject(family), "12+34"
        tokens = model.lay_out(text).tokens
        direction = torch.zeros(14, dtype=torch.float64)
        direction[:10], direction[6] = -1 / 9, 1  # 12 + 34 = 46: the units against the mean of the other digits
        place = 5
    else:
        model, text = of_library(family, torch.float64), NUMBERS
        tokens, place = model.to_tokens(NUMBERS), 10
        best = model(tokens)[0, -1].topk(2).indices
        direction = torch.zeros(D_VOCAB, dtype=torch.float64)
        direction[best[0]], direction[best[1]] = 1, -1
    facts = ag.lenses.attribution(model, [text]).facts
    assert facts["position"] == place
    assert parts_of(facts) == pytest.approx(by_hand(model, tokens, place, direction), abs=1e-10)


def test_a_stream_that_is_no_sum_is_refused_in_one_line() -> None:
    for lens in (
        lambda model: ag.lenses.attribution(model, PAIR),
        lambda model: ag.lenses.path_patching(model, "12+34", "19+34"),
        lambda model: ag.lenses.induction(model),
    ):
        with pytest.raises(SubjectError, match="normalises the residual stream after each sum") as raised:
            lens(subject("post norms"))
        assert "\n" not in str(raised.value)


# ---------------------------------------------------------------------- what was planted


@pytest.mark.parametrize("text", REPEATED)
def test_the_induction_head_alone_speaks_and_says_all_of_it(text: str) -> None:
    found = ag.lenses.attribution("planted:induction", [text])
    assert found["largest"]["component"] == "L1H0"
    assert found["largest"]["contribution"] == pytest.approx(found["logit_difference"]) == pytest.approx(20)
    others = [value for name, value in parts_of(found.facts).items() if name != "L1H0"]
    np.testing.assert_allclose(others, 0, atol=1e-6)
    assert "L1H0 adds +20" in found.claim


def test_the_opposite_head_speaks_against() -> None:
    found = ag.lenses.attribution("planted:induction-wrong", ["qwertyq"], target="w", rival="t")
    assert found["largest"] == {"component": "L1H0", "contribution": pytest.approx(-20)}
    assert found["logit_difference"] == pytest.approx(-20)


@pytest.mark.parametrize(("name", "text"), [("previous-token", "abcq"), ("reversal", "abcde"), ("clock", "60+60")])
def test_what_is_written_for_the_answer_is_what_the_mechanism_names(name: str, text: str) -> None:
    planted = PLANTED.load(name)()
    found = ag.lenses.attribution(subject_of(planted, name), [text])
    writers = {f"L{layer} MLP" for layer in planted.mechanism.feed_forwards} or {
        f"L{layer}H{head}" for layer, head in planted.mechanism.heads.values()
    }
    assert found["largest"]["component"] in writers
    assert found["largest"]["contribution"] == pytest.approx(found["logit_difference"], rel=1e-5)


def test_in_the_carry_adder_the_column_and_its_corrections_speak_and_idle_heads_say_nothing() -> None:
    found = ag.lenses.attribution("planted:carry-adder", ["999+001"])
    for answer in found["answers"]:
        parts = parts_of(answer)
        assert [parts[name] for name in ("L1H0", "L1H1")] == [0, 0]
        assert answer["logit_difference"] > 0
    units, tens, _, top, end = (parts_of(answer) for answer in found["answers"])
    assert units["L1 MLP"] == pytest.approx(2000), "9 + 1 = 10 is written as 0: 10 of 20 (2 d v) over a mean digit of 5"
    assert units["L0 MLP"] == 0, "nothing is carried into the units"
    assert tens["L0 MLP"] != 0
    assert top["L1 MLP"] == 0
    assert {name for name, value in end.items() if abs(value) > 1e-3} == {"pos_embed"}, "the end comes by position"


@pytest.mark.parametrize("seed", range(5))
def test_in_shuffled_weights_no_head_says_it_all(seed: int) -> None:
    destroyed = subject_of(shuffled(PLANTED.load("induction")(), seed), "shuffled")
    said = []
    for text in REPEATED:
        found = ag.lenses.attribution(destroyed, [text], target=text[text.index(text[-1]) + 1])
        said.append(found["largest"]["component"] == "L1H0" and found["largest"]["contribution"] > 10)
    assert not any(said)


def test_in_random_weights_no_part_says_it_all() -> None:
    for seed in range(5):
        for answer in ag.lenses.attribution(subject(seed=seed), PAIR)["answers"]:
            parts = parts_of(answer)
            assert abs(answer["largest"]["contribution"]) < 0.9 * sum(map(abs, parts.values()))


# ---------------------------------------------------------------------- what it says


def test_panels_are_means_over_the_inputs_and_the_grid_is_the_bars() -> None:
    model = subject("parallel")
    found = ag.lenses.attribution(model, PAIR)
    each = np.array([list(parts_of(answer).values()) for answer in found["answers"]]).reshape(2, 4, -1)
    bars, grid = found["each part"], found["by layer"]
    np.testing.assert_allclose(bars.values, each.mean(axis=0))
    assert bars.axes[1].labels == tuple(parts_of(found.facts))
    assert bars.axes[0].labels == tuple(f"answer token {n}" for n in (1, 2, 3, 4))
    assert grid.axes[2].labels == ("H0", "H1", "attn bias", "MLP")
    for layer in range(2):
        for i, name in enumerate(grid.axes[2].labels):
            whole = f"L{layer}{name}" if name.startswith("H") else f"L{layer} {name}"
            np.testing.assert_array_equal(grid.values[:, layer, i], bars.values[:, bars.axes[1].labels.index(whole)])
    assert (bars.unit, bars.scale) == (grid.unit, grid.scale), "they are drawn on one range"


def test_a_target_and_a_rival_can_be_named_and_the_rest_is_said() -> None:
    model = subject()
    answers = ag.lenses.attribution(model, ["12+34"])["answers"]
    assert [answer["target"] for answer in answers] == ["6", "4", "0", "<EOS>"]
    assert [answer["position"] for answer in answers] == [5, 6, 7, 8]
    assert answers[0]["rivals"] == [digit for digit in "0123456789" if digit != "6"]
    assert answers[3]["rivals"] == [*"0123456789"]
    found = ag.lenses.attribution(model, ["12+34"], target="6", rival="5")
    logits = model(model.lay_out("12+34").tokens)[0, 5:]
    np.testing.assert_allclose([a["logit_difference"] for a in found["answers"]], logits[:, 6] - logits[:, 5])
    assert found["rivals"] == ["5"]


def test_the_command_writes_json_and_a_figure(run, tmp_path: Path) -> None:
    arguments = ["lens", "attribution", "planted:induction", "--input", "qwertyq"]
    code, out, err = run(*arguments, "--out", tmp_path / "parts.html", "--json", "--quiet")
    assert code == 0, err
    found = json.loads(out)
    assert found["largest"]["component"] == "L1H0"
    assert found["sum"] == pytest.approx(found["logit_difference"])
    assert [part["component"] for part in found["parts"]] == ["embed", "pos_embed", "L0H0", "L0H1", "L1H0", "L1H1"]
    assert "Plotly" in (tmp_path / "parts.html").read_text()
    code, out, _ = run(*arguments, "--target", "t", "--rival", "w", "--json", "--quiet")
    assert json.loads(out)["logit_difference"] == pytest.approx(-20)
    code, _, err = run(*arguments, "--target", "we")
    assert (code, err.count("\n")) == (2, 1)


def test_a_text_is_split_at_its_last_position(tmp_path: Path) -> None:
    model = ag.open(f"hf:{save(tmp_path / 'gpt2')}")
    found = ag.lenses.attribution(model, ["The capital of", "The Paris"], rival=" Paris")
    assert [answer["position"] for answer in found["answers"]] == [2, 1]
    assert found["rivals"] == [" Paris"]
    assert len(found["each part"].axes[0].labels) == 1


@pytest.mark.parametrize(
    ("inputs", "options", "error", "words"),
    [
        ([], {}, ConfigError, "at least one input"),
        (["12+34"], {"target": "12"}, VocabularyError, "'12' is 2 tokens"),
        (["12+34"], {"target": "1", "rival": "1"}, VocabularyError, "both '1'"),
        (["12+34"], {"rival": "4"}, VocabularyError, "both '4' at answer token 2"),
        (["12+"], {}, VocabularyError, "not a sum"),
    ],
)
def test_bad_input_is_one_line(inputs: list[str], options: dict, error: type[AlgoscopeError], words: str) -> None:
    with pytest.raises(error, match=words) as raised:
        ag.lenses.attribution(subject(), inputs, **options)
    assert "\n" not in str(raised.value)
