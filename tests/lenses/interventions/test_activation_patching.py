"""The patching lens, on facts that hold for any weights: where inputs differ, and where the answer is read."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

import algoscope as ag
from algoscope.config import ModelConfig
from algoscope.core.errors import ConfigError, PairingError, SubjectError, UnknownNameError, VocabularyError
from algoscope.lenses.interventions.activation_patching import SWEEPS, patch
from algoscope.lenses.interventions.contrast_pairs import of_the_gap
from algoscope.networks.build import build
from algoscope.subjects.subject import Subject
from algoscope.tasks.digits.addition import Addition
from hf_models import SENTENCES, save


def random_subject(seed: int = 0) -> Subject:
    cfg = ModelConfig(d_vocab=14, n_ctx=13, d_model=16, d_mlp=32, n_layers=3, n_heads=2, init_embed_std=1.0)
    return Subject("random", build(cfg, seed).double(), Addition(n_digits=3))


@pytest.mark.parametrize("direction", ["denoise", "noise"])
def test_only_what_differs_carries_anything_and_only_the_last_place_is_read(direction: str) -> None:
    found = patch(random_subject(), "123+456", "128+456", sites=["resid_pre", "resid_post"], direction=direction)
    into, out = found["resid_pre"].values, found["resid_post"].values
    full, nothing = (1, 0) if direction == "denoise" else (0, 1)
    differs = np.array([i == 2 for i in range(12)])
    np.testing.assert_allclose(into[0], np.where(differs, full, nothing), atol=1e-9)
    read = np.array([i == 7 for i in range(12)])  # the answers differ in their units, which the `=` is asked for
    np.testing.assert_allclose(out[2], np.where(read, full, nothing), atol=1e-9)
    np.testing.assert_allclose(into[:, 8:], nothing, atol=1e-9, err_msg="what comes after the reading place")
    np.testing.assert_allclose(into[:, :2], nothing, atol=1e-9, err_msg="what comes before the difference")
    np.testing.assert_allclose(into[1:], out[:-1], atol=1e-9, err_msg="the stream that leaves a block enters the next")


def test_baselines_raw_values_and_examples_belong_together() -> None:
    cleans, corrupts = ["123+456", "200+300", "999+001"], ["124+456", "200+301", "999+000"]
    found = patch(random_subject(), cleans, corrupts, sites=["head", "mlp_out"])
    low, high = found["baselines"]["corrupt"], found["baselines"]["clean"]
    each = np.array(found["per_example"]["head"])
    assert each.shape == (3, 3, 2)
    np.testing.assert_allclose(each.mean(axis=0), found["head"].values, atol=1e-9)
    one = patch(random_subject(), cleans[1], corrupts[1], sites=["head"])
    np.testing.assert_allclose(one["head"].values, each[1], atol=1e-9)
    gap = one["baselines"]["clean"] - one["baselines"]["corrupt"]
    np.testing.assert_allclose(
        (np.array(one["raw"]["head"]) - one["baselines"]["corrupt"]) / gap, one["head"].values, atol=1e-9
    )
    assert low != high


def test_every_sweep_runs_and_patching_everything_of_a_layer_is_the_clean_run() -> None:
    found = patch(random_subject(), "123+456", "128+456", sites=list(SWEEPS))
    assert [panel.name for panel in found.panels] == [*SWEEPS, "strongest"]
    assert found["head_position"].values.shape == (3, 2, 12)
    assert found["neuron"].values.shape == (3, 32)
    assert np.isfinite([panel.values.sum() for panel in found.panels]).all()


def test_what_a_trained_adder_says_is_where_the_answer_is_read_at_last(adder: ag.Subject) -> None:
    found = ag.lenses.patch(adder, "123+456", "121+456", sites=["resid_post"])
    values = found["resid_post"].values
    np.testing.assert_allclose(values[1], np.arange(12) == 7, atol=1e-4)
    assert found["baselines"]["clean"] > 0 > found["baselines"]["corrupt"], "both sums are answered right"
    assert "resid_post" in found.claim


def test_one_solution_has_the_units_at_the_equals_sign_after_its_first_block(stored_adder: ag.Subject) -> None:
    values = ag.lenses.patch(stored_adder, "123+456", "121+456", sites=["resid_post"])["resid_post"].values
    assert values[0, 7] > 0.95
    assert values[0, :7].max() < 0.05


@pytest.mark.parametrize(
    ("clean", "corrupt", "options", "words"),
    [
        ("1+2", "2+1", {}, "same answer"),
        (["1+2"], ["1+3", "1+4"], {}, "1 clean and 2 corrupt"),
        ([], [], {}, "0 clean"),
        ("123+456", "124+456", {"metric": "exact_match"}, "does not separate"),
    ],
)
def test_inputs_that_cannot_be_compared_are_one_line(clean, corrupt, options: dict, words: str) -> None:
    with pytest.raises(PairingError, match=words) as raised:
        patch(random_subject(), clean, corrupt, **options)
    assert "\n" not in str(raised.value)


def test_a_model_that_would_see_the_answer_is_refused() -> None:
    cfg = ModelConfig(d_vocab=14, n_ctx=13, d_model=16, causal=False)
    with pytest.raises(SubjectError, match="not causal"):
        patch(Subject("all-seeing", build(cfg, 0), Addition(n_digits=3)), "123+456", "128+456")


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> ag.Subject:
    return ag.open(f"hf:{save(tmp_path_factory.mktemp('hf') / 'llama', 'llama')}")


def equally_long(model: ag.Subject) -> tuple[str, str]:
    """Two beginnings of as many tokens, after which the model says different things."""
    sides = [model.to_tokens(text) for text in SENTENCES]
    said = [model(side)[0].argmax(dim=-1) for side in sides]
    n = next(n for n in range(4, 20) if said[0][n - 1] != said[1][n - 1])
    left, right = (model.to_string(side[0, :n]) for side in sides)
    return left, right


def test_free_text_is_read_at_its_end_and_compares_what_the_model_says(llama: ag.Subject) -> None:
    clean, corrupt = equally_long(llama)
    found = patch(llama, clean, corrupt, sites=["resid_post", "head_position"])
    clean_logits, corrupt_logits = (llama(llama.to_tokens(text))[0, -1].double() for text in (clean, corrupt))
    target, rival = int(clean_logits.argmax()), int(corrupt_logits.argmax())
    assert found["target"] == [llama.text.token(target)]
    assert found["rival"] == [llama.text.token(rival)]
    assert found["baselines"]["clean"] == pytest.approx(float(clean_logits[target] - clean_logits[rival]), rel=1e-4)
    np.testing.assert_allclose(found["resid_post"].values[-1, -1], 1, atol=1e-4)
    np.testing.assert_allclose(found["resid_post"].values[-1, :-1], 0, atol=1e-4)
    chosen = patch(llama, clean, corrupt, sites=["head"], target="The", rival=" is")
    assert (chosen["target"], chosen["rival"]) == (["The"], [" is"])


def test_free_texts_that_cannot_be_paired(llama: ag.Subject) -> None:
    with pytest.raises(PairingError, match="the pairs have different lengths in tokens"):
        patch(llama, [SENTENCES[0][:12], SENTENCES[0][:30]], [SENTENCES[1][:30], SENTENCES[1][:30]])
    clean, corrupt = equally_long(llama)
    with pytest.raises(VocabularyError, match=r"0 tokens of hf:.*, not one"):
        patch(llama, clean, corrupt, target="")


def test_the_bars_are_the_strongest_cells_and_the_critical_ones_are_named() -> None:
    for direction, sign in (("denoise", -1), ("noise", 1)):
        found = patch(random_subject(), "123+456", "128+456", sites=["resid_post", "head"], direction=direction)
        cells = sorted((value for p in found.panels[:2] for _, value in p.cells()), key=lambda value: sign * value)
        np.testing.assert_allclose(found["strongest"].values, cells[: len(found["strongest"].values)])
        critical = [cell["recovered"] for cell in found["critical"]]
        assert critical == [value for value in cells if (value >= 0.5) == (sign < 0)]
        best = found["strongest"].axes[0].labels[0]
        assert best in found.claim
        assert re.fullmatch(r"head L\dH\d|resid_post L\d \S_\d+", best)


def test_pairs_are_sorted_by_class() -> None:
    cleans, corrupts = ["111+111", "222+222", "119+111"], ["112+111", "223+222", "118+111"]
    found = patch(random_subject(), cleans, corrupts, sites=["head"])
    by_class = found["by_class"]
    assert {name: row["pairs"] for name, row in by_class.items()} == {"S0": 2, "S1": 1}
    each = np.array(found["per_example"]["head"])
    np.testing.assert_allclose(by_class["S1"]["head"], each[2])
    np.testing.assert_allclose(by_class["S0"]["head"], each[:2].mean(axis=0))


@pytest.mark.parametrize("options", [{"sites": ["haed"]}, {"direction": "both"}, {"metric": "vibes"}])
def test_names_that_there_are_not(options: dict) -> None:
    with pytest.raises(UnknownNameError, match="known"):
        patch(random_subject(), "123+456", "128+456", **options)


def test_a_model_without_feed_forwards_is_patched_at_what_it_has() -> None:
    found = patch("planted:induction", "abcda", "cbada")
    assert [panel.name for panel in found.panels] == ["resid_pre", "attn_out", "head", "strongest"]
    with pytest.raises(UnknownNameError, match="mlp_out"):
        patch("planted:induction", "abcda", "cbada", sites=["mlp_out"])


def test_no_sites_are_one_line() -> None:
    with pytest.raises(ConfigError, match=r"no sites: give one or more of resid_pre, .*, neuron") as raised:
        patch(random_subject(), "123+456", "128+456", sites=[])
    assert "\n" not in str(raised.value)


def test_patch_from_the_command_line(run, stored_adder: ag.Subject, tmp_path: Path) -> None:
    out = tmp_path / "patch.html"
    arguments = [stored_adder.name, "--clean", "123+456", "--corrupt", "121+456", "--sites", "resid_pre,head"]
    code, said, err = run("patch", *arguments, "--metric", "kl", "--out", out, "--json", "--quiet")
    assert code == 0, err
    found = json.loads(said)
    assert [panel["site"] for panel in found["panels"]] == ["resid_pre", "head", "strongest"]
    assert found["panels"][0]["axes"]["layer"] == [0, 1]
    assert found["panels"][0]["axes"]["position"][:3] == ["1_0", "2_1", "1_2"]
    assert np.array(found["panels"][0]["recovered"]).shape == (2, 12)
    assert set(found["baselines"]) == {"clean", "corrupt"}
    assert out.is_file()
    code, _, err = run("patch", *arguments, "--direction", "sideways")
    assert (code, err.count("\n")) == (2, 1)
    code, _, err = run("patch", stored_adder.name, "--clean", "123+456")
    assert (code, err.count("\n")) == (2, 1)


def test_a_run_of_patches_leaves_the_model_alone() -> None:
    model = random_subject()
    before = {name: value.clone() for name, value in model.model.state_dict().items()}
    patch(model, "123+456", "128+456")
    assert all(torch.equal(value, before[name]) for name, value in model.model.state_dict().items())


def test_what_goes_beyond_the_gap_is_no_percentage() -> None:
    assert [of_the_gap(value) for value in (0.0, 0.42, 1.0, 1.3, -0.2)] == ["0%", "42%", "100%", "1.30", "-0.20"]


def test_a_metric_of_one_s_own_reads_whole_runs_as_the_built_in_one_reads_its_position() -> None:
    subject, cleans, corrupts = random_subject(), ["123+456", "200+300"], ["128+456", "200+301"]
    rows = torch.arange(2)
    right, wrong = (torch.tensor([int(subject.task.expected(text)[0]) for text in side]) for side in (cleans, corrupts))

    def units(logits: torch.Tensor) -> torch.Tensor:
        assert logits.shape == (2, 12, 14)
        return logits[rows, 7, right] - logits[rows, 7, wrong]

    built_in = patch(subject, cleans, corrupts, sites=["resid_pre", "head"])
    own = patch(subject, cleans, corrupts, sites=["resid_pre", "head"], metric=units)
    assert (own["metric"], built_in["metric"]) == ("units", "logit_diff")
    assert own["baselines"] == pytest.approx(built_in["baselines"])
    for name in ("resid_pre", "head"):
        np.testing.assert_allclose(own[name].values, built_in[name].values, atol=1e-9)


@pytest.mark.parametrize("metric", [lambda logits: logits[0, 7, 9], lambda logits: logits[0, 7, 9:10].tolist()])
def test_for_one_input_a_single_number_will_do(metric) -> None:
    found = patch(random_subject(), "123+456", "128+456", sites=["resid_pre"], metric=metric)
    assert found["metric"] == "custom metric"
    assert found["resid_pre"].values[0, 2] == pytest.approx(1)


def test_a_metric_that_changes_its_logits_changes_nothing_else() -> None:
    def careless(logits: torch.Tensor) -> torch.Tensor:
        return logits.mul_(2)[:, 7, 9]

    careful = patch(random_subject(), "123+456", "128+456", sites=["head"], metric=lambda logits: 2 * logits[:, 7, 9])
    assert patch(random_subject(), "123+456", "128+456", sites=["head"], metric=careless)["raw"] == careful["raw"]


@pytest.mark.parametrize(
    ("metric", "words"),
    [
        (lambda logits: logits[:, 99], r"custom metric gets logits .*, here \[2, 12, 14\], .* IndexError"),
        (lambda logits: None, "failed with"),
        (lambda logits: logits.mean(), r"a number per input, 2, not a result of \[\]"),
        (lambda logits: logits[:, -1], r"not a result of \[2, 14\]"),
        (lambda logits: logits[:, 0, 0].log() * torch.nan, "finite"),
        (lambda logits: logits[:, 0, 0] * 0, "custom metric does not separate"),
        ("logit_dif", "did you mean 'logit_diff'"),
        (5, "metric takes one of logit_diff, .* or a function of logits"),
        (None, "not None"),
    ],
)
def test_a_metric_that_is_none_is_one_line(metric, words: str) -> None:
    with pytest.raises(ag.AlgoscopeError, match=rf"^[^\n]*{words}[^\n]*$"):
        patch(random_subject(), ["123+456", "200+300"], ["128+456", "200+301"], metric=metric)


@pytest.mark.parametrize("target", ["5", 5, np.int64(5), torch.tensor(5)])
def test_a_target_is_a_text_or_its_number(target) -> None:
    assert patch(random_subject(), "123+456", "128+456", sites=["head"], target=target)["target"] == ["5"]
