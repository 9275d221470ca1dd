"""Each lens on weights whose mechanism is known, and on random ones where there is nothing to find."""

from pathlib import Path

import numpy as np
import pytest
import torch

import algoscope as ag
from algoscope.config import ModelConfig
from algoscope.core.errors import ConfigError, UnknownNameError, VocabularyError
from algoscope.doors.public import PUBLIC_LENSES
from algoscope.lenses.parameters.embedding_geometry import cosine_similarity, effective_dimension, principal_components
from algoscope.lenses.table import LENSES
from algoscope.networks.build import build
from algoscope.runs.run_folder import weights_hash
from algoscope.subjects.subject import Subject
from algoscope.tasks.digits.addition import Addition
from algoscope.tasks.groups.modular import Modular

TASK = Addition(n_digits=2)
PAIR = ["12+34", "99+1"]


def subject_of(cfg: ModelConfig, seed: int = 0) -> Subject:
    return Subject("made", build(cfg, seed), TASK)


def shape(**fields) -> ModelConfig:
    return ModelConfig(d_vocab=14, n_ctx=TASK.n_ctx, init_embed_std=1.0, **fields)


def previous_token_head() -> Subject:
    """One head whose query at position p asks for the key of position p - 1: positions are one-hot, the key is
    shifted by one."""
    subject = subject_of(shape(d_model=24, n_layers=1, d_mlp=None, normalization_type=None))
    model = subject.model
    with torch.no_grad():
        model.embed.weight.zero_()
        model.pos_embed.weight.copy_(torch.eye(TASK.n_ctx, 24))
        attn = model.blocks[0].attn
        attn.q.weight.copy_(100 * torch.eye(24))
        attn.k.weight.copy_(torch.roll(torch.eye(24), 1, dims=0))
    return subject


# ---------------------------------------------------------------------- attention


def previous_share(finding: ag.Finding) -> float:
    """Mean attention on the position before, from the second query on."""
    return float(np.mean([np.diag(p.values[0, 0], k=-1).mean() for p in finding.panels if p.beside]))


def test_attention_shows_a_planted_previous_token_head() -> None:
    assert previous_share(ag.lenses.attention(previous_token_head(), PAIR)) > 0.999


def test_attention_shows_no_such_head_in_random_weights() -> None:
    shares = [previous_share(ag.lenses.attention(subject_of(shape(n_layers=1), seed), PAIR)) for seed in range(10)]
    assert max(shares) < 0.6


def test_attention_is_the_models_own_pattern(adder: Subject) -> None:
    exact = adder.to_dtype(torch.float64)
    finding = ag.lenses.attention(exact, ["123+456", "999+001"])
    _, cache = exact.run_with_cache(exact.to_tokens("123+456=9750"))
    for layer in range(2):
        shown = np.nan_to_num(finding["attention 123+456"].values[layer])
        np.testing.assert_allclose(shown, cache["pattern", layer][0].numpy(), atol=1e-10)


def test_cells_that_the_mask_hides_do_not_exist() -> None:
    values = ag.lenses.attention(subject_of(shape()), PAIR)["attention 12+34"].values
    hidden = np.triu(np.ones(values.shape[-2:], dtype=bool), k=1)
    assert np.isnan(values[..., hidden]).all()
    assert not np.isnan(values[..., ~hidden]).any()
    seeing = ag.lenses.attention(subject_of(shape(causal=False)), PAIR)["attention 12+34"].values
    assert not np.isnan(seeing).any()


def test_rows_of_attention_and_its_summary_add_up_to_one() -> None:
    finding = ag.lenses.attention(subject_of(shape(n_heads=2)), PAIR)
    np.testing.assert_allclose(np.nansum(finding["attention 12+34"].values, axis=-1), 1, atol=1e-6)
    np.testing.assert_allclose(finding["where answers look"].values.sum(-1), 1, atol=1e-6)


def test_some_heads_are_those_of_all() -> None:
    subject = subject_of(shape(n_heads=2))
    whole = ag.lenses.attention(subject, PAIR)["attention 12+34"].values
    some = ag.lenses.attention(subject, PAIR, ["L1H0", "L0H1"])["attention 12+34"]
    assert some.axes[0].labels == ("L1H0", "L0H1")
    np.testing.assert_array_equal(some.values, [whole[1, 0], whole[0, 1]])
    with pytest.raises(UnknownNameError, match="unknown head 'L2H0'"):
        ag.lenses.attention(subject, PAIR, ["L2H0"])


def test_labels_are_tokens_with_their_positions() -> None:
    panel = ag.lenses.attention(subject_of(shape()), ["12+34"]).panels[0]
    assert panel.axes[-1].labels[:6] == ("1_0", "2_1", "+_2", "3_3", "4_4", "=_5")
    assert panel.marks[0].at == 5.5


# ---------------------------------------------------------------------- embeddings


def test_a_planted_circle_is_found() -> None:
    subject = subject_of(shape())
    angle = 2 * torch.pi * torch.arange(14) / 10
    with torch.no_grad():
        subject.model.embed.weight.zero_()
        subject.model.embed.weight[:, 3], subject.model.embed.weight[:, 7] = angle.cos(), angle.sin()
    finding = ag.lenses.embeddings(subject)
    assert finding.facts["effective_dimension"]["token"]["after"] == pytest.approx(2, abs=0.1)
    share = finding["token explained variance"].values[0]
    assert share[:2].sum() == pytest.approx(1)
    similarity = finding["token similarity"].values[0]
    assert similarity[0, 1] == pytest.approx(np.cos(2 * np.pi / 10), abs=1e-6)
    assert similarity[0, 5] == pytest.approx(-1, abs=1e-6)


def test_no_circle_is_found_in_random_embeddings() -> None:
    for seed in range(5):
        finding = ag.lenses.embeddings(subject_of(shape(), seed))
        assert finding.facts["effective_dimension"]["token"]["after"] > 6
        assert finding["token explained variance"].values[0][:2].sum() < 0.5


def test_one_token_and_one_dimension_are_drawn_as_points_without_variance(tmp_path: Path) -> None:
    found = ag.lenses.embeddings("planted:induction", "a")
    assert found["effective_dimension"]["token"]["after"] == 0
    assert np.array_equal(found["token PCA"].values, np.zeros((1, 1, 2)))
    found.to_json()
    thin = subject_of(shape(d_model=1, n_heads=1, d_head=2, n_layers=1, d_mlp=None))
    assert ag.lenses.embeddings(thin)["effective_dimension"]["token"]["after"] == pytest.approx(1)
    ag.lenses.embeddings(thin).save(tmp_path / "thin.html")


def test_principal_components_are_those_of_the_covariance() -> None:
    vectors = np.random.default_rng(0).normal(size=(13, 5)) * [5, 3, 1, 1, 1]
    coordinates, share = principal_components(vectors)
    eigenvalues = np.linalg.eigvalsh(np.cov(vectors.T))[::-1]
    np.testing.assert_allclose(share, eigenvalues / eigenvalues.sum(), atol=1e-10)
    np.testing.assert_allclose(coordinates.var(axis=0, ddof=1), eigenvalues, atol=1e-10)


def test_geometry_at_its_extremes() -> None:
    line = np.outer(np.arange(5), [1.0, 2.0, 3.0])
    assert effective_dimension(line) == pytest.approx(1)
    assert effective_dimension(np.concatenate([np.eye(4), -np.eye(4)])) == pytest.approx(4)
    np.testing.assert_allclose(cosine_similarity(np.array([[1.0, 0], [0, 2], [-3, 0]]))[0], [1, 0, -1], atol=1e-12)


def test_before_and_after_stand_side_by_side(adder: Subject) -> None:
    finding = ag.lenses.embeddings(adder)
    for what in ("token", "position"):
        for panel in (f"{what} PCA", f"{what} explained variance", f"{what} similarity"):
            assert finding[panel].axes[0].labels == ("before training", "after training")
        assert set(finding.facts["effective_dimension"][what]) == {"before", "after"}
    for shown, model in zip(finding["token similarity"].values, (adder.before_training(), adder), strict=True):
        digits = model.model.embed.weight[:10].double().numpy()
        np.testing.assert_allclose(shown[:10, :10], cosine_similarity(digits), atol=1e-6)


def test_one_solution_has_neighbouring_digits_alike(stored_adder: Subject) -> None:
    similar = ag.lenses.embeddings(stored_adder)["token similarity"].values[0][:10, :10]
    assert np.diagonal(similar, offset=1).mean() > 0.5
    assert np.diagonal(similar, offset=5).mean() < 0


def test_a_model_without_position_vectors_has_token_panels_only() -> None:
    finding = ag.lenses.embeddings(subject_of(shape(positions="rotary")))
    assert {panel.name.split()[0] for panel in finding.panels} == {"token"}


# ---------------------------------------------------------------------- answers


def test_edge_cases_and_random_inputs_of_the_demo_are_right(adder: Subject) -> None:
    facts = ag.lenses.answers(adder, ["7+8"]).facts
    assert (facts["edge_cases_right"], facts["edge_cases"]) == (6, 6)
    assert (facts["random_right"], facts["random"]) == (200, 200)
    assert [case["input"] for case in facts["cases"]][-1] == "007+008="
    assert facts["cases"][1]["got"] == "0001<EOS>"


def test_a_random_model_answers_nothing_right() -> None:
    finding = ag.lenses.answers(subject_of(shape()))
    assert finding.facts["random_right"] < 10
    assert any(not case["right"] for case in finding.facts["cases"])


def test_probabilities_are_those_of_the_softmax(adder: Subject) -> None:
    panel = ag.lenses.answers(adder, ["123+456"])["probability"]
    logits = adder(adder.to_tokens("123+456=9750"))[0, 7:].double().softmax(-1)
    expected = [logits[i, token].item() for i, token in enumerate([9, 7, 5, 0, 12])]
    np.testing.assert_allclose(panel.values[-1], expected, atol=1e-6)


# ---------------------------------------------------------------------- all


@pytest.fixture(scope="module")
def adds_modulo_7(tmp_path_factory: pytest.TempPathFactory) -> ag.Run:
    """A run with checkpoints whose task has a group: some lenses look at no other."""
    sizes = {"task.p": 7, "model.d_vocab": 8, "model.d_model": 16, "model.d_mlp": 16}
    amounts = {"data.n_train": 24, "data.n_test": 25, "batch": 24, "steps": 2}
    folder = tmp_path_factory.mktemp("runs")
    return ag.train("grok113", name="small", settings=sizes | amounts, runs_dir=folder, progress=False)


@pytest.mark.parametrize("name", PUBLIC_LENSES)
def test_a_lens_keeps_its_name_once_it_is_loaded(name: str) -> None:
    loaded = PUBLIC_LENSES.load(name)
    assert getattr(ag.lenses, name) is loaded, "a module of that name in the package would stand before it"


@pytest.mark.parametrize("name", LENSES)
def test_no_lens_changes_the_model(name: str, adds_modulo_7: ag.Run, small_run: ag.Run) -> None:
    needed = {"source_attention": "planted:reversal", "induction_phase": small_run, "timeline": small_run}
    needed |= dict.fromkeys(("clock", "fourier", "progress"), adds_modulo_7)
    subject = ag.open(needed[name]) if name in needed else subject_of(shape())
    before = weights_hash(subject.model.state_dict())
    asked = {"attention": [PAIR], "patch": PAIR, "logit": [PAIR], "attribution": [PAIR], "path_patching": PAIR}
    asked["attribution_patching"] = PAIR
    getattr(ag.lenses, name)(subject, *asked.get(name, []))
    assert weights_hash(subject.model.state_dict()) == before


@pytest.mark.parametrize(
    ("name", "subject", "text"),
    [
        ("answers", "planted:carry-adder", "7+8"),
        ("logit", "planted:carry-adder", "7+8"),
        ("attribution", "planted:induction", "qwertyq"),
        ("embeddings", "planted:induction", "abcabc"),
    ],
)
def test_one_text_is_a_list_of_one(name: str, subject: str, text: str) -> None:
    lens = getattr(ag.lenses, name)
    assert lens(subject, text).to_dict() == lens(subject, [text]).to_dict()


@pytest.mark.parametrize("name", ["answers", "logit", "attribution", "embeddings", "weights", "ablate"])
def test_findings_explain_themselves(name: str) -> None:
    arguments = ["123+456"] if name in ("logit", "attribution") else []
    finding = getattr(ag.lenses, name)("planted:carry-adder", *arguments)
    assert finding.about
    assert all(panel.caption for panel in finding.panels)
    assert all(0 < len(table.rows) <= 60 and table.caption for table in finding.tables)
    assert finding.tables


def test_former_names_of_options_warn() -> None:
    with pytest.warns(FutureWarning, match="'n_random' is now called 'n_inputs'"):
        assert ag.lenses.answers("planted:carry-adder", n_random=3)["random"] == 3


def test_bad_input_is_named() -> None:
    subject = subject_of(shape())
    with pytest.raises(ConfigError, match="at least one input"):
        ag.lenses.attention(subject, [])
    with pytest.raises(VocabularyError, match="'x'"):
        ag.lenses.attention(subject, ["x+1"])
    with pytest.raises(AttributeError, match="attention"):
        _ = ag.lenses.nonsense
    with pytest.raises(UnknownNameError):
        LENSES["atention"]


def test_numbers_on_circles_are_told_in_the_planes_of_their_frequencies() -> None:
    """Circles of equal size, which principal components mix; numbers by their logarithms where they are multiplied."""
    task = Modular(p=23, operation="*")
    cfg = ModelConfig(d_vocab=task.d_vocab, n_ctx=task.n_ctx, d_model=16, n_layers=1, d_mlp=16)
    model = build(cfg, 0)
    random = ag.lenses.embeddings(Subject("random", model, task))
    assert random["circularity"]["after"] < 0.3
    angle = 2 * torch.pi / 22 * torch.outer(torch.arange(22), torch.tensor([1, 3, 4, 8]))
    frame = torch.linalg.qr(torch.randn(16, 16, generator=torch.Generator().manual_seed(0)))[0]
    powers = torch.tensor([pow(5, k, 23) for k in range(22)])  # 5 is the smallest primitive root
    model.embed.weight.data[powers] = torch.cat([angle.cos(), angle.sin()], dim=1) @ frame[:8]
    on_circles = ag.lenses.embeddings(Subject("circles", model, task))
    assert on_circles["circularity"]["after"] == pytest.approx(1)
    assert set(on_circles["token circles"].axes[0].labels) == {f"frequency {k}" for k in (1, 3, 4, 8)}
    np.testing.assert_allclose(np.linalg.norm(on_circles["token circles"].values, axis=-1), 1, atol=1e-6)
    assert ag.lenses.embeddings("planted:carry-adder")["circularity"] is None
