"""The clock lens: its measures against their definitions, its verdict on weights whose mechanism is known."""

import copy
import json
import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch

import algoscope as ag
from algoscope.config import ModelConfig
from algoscope.core.errors import AlgoscopeError, ConfigError, TaskMismatchError
from algoscope.doors.report.report import prompts_of, questions_of, render
from algoscope.lenses.modular_arithmetic.circles import (
    FORMS,
    Logits,
    by_distance,
    circles_of,
    circularity,
    distance_irrelevance,
    forms,
)
from algoscope.lenses.modular_arithmetic.clock_or_pizza import (
    Bounds,
    cube_of,
    gradient_cosines,
    judge,
    outcomes,
    pair_logits,
)
from algoscope.lenses.modular_arithmetic.fourier_basis import fourier_basis
from algoscope.networks.build import build
from algoscope.planted.handwritten import Stream, blank, feed_forward, fill, plant, plant_by_position
from algoscope.planted.models import KEY_FREQUENCIES, shuffled, waves
from algoscope.planted.table import PLANTED
from algoscope.subjects.edits import Add
from algoscope.subjects.planted import subject_of
from algoscope.subjects.subject import Subject
from algoscope.tasks.groups.group import Group
from algoscope.tasks.groups.modular import Modular

BOUNDS = Bounds(accurate=0.99, circular=0.8, alike=0.98, apart=0.8, fits=0.8)
FINE = {
    "accuracy": 1.0,
    "elements": 59,
    "circularity": 1.0,
    "symmetricity": 0.99,
    "isolated": {"clock": 0.6, "pizza": 0.75, "accompanying": 0.2},
    "cosines": 0.95,
}


@pytest.fixture(scope="module")
def found() -> dict[str, ag.Finding]:
    return {name: ag.lenses.clock(f"planted:{name}") for name in ("clock", "pizza")}


def untrained(task: Modular | Group, **fields) -> Subject:
    shape = {"d_model": 8, "n_layers": 1, "d_mlp": 16, "init_embed_std": 1.0} | fields
    cfg = ModelConfig(d_vocab=task.d_vocab, n_ctx=task.n_ctx, **shape)
    return Subject("untrained", build(cfg, 0).double(), task)


def circle_points(
    n: int, *frequencies: int, smallest: float = 0.5, narrow: float = 1.0, noise: float = 0.0
) -> np.ndarray:
    """Vectors of numbers on circles of falling size, or ellipses, in a random orthonormal frame, with Gaussian noise
    that has this share of their variance.
    """
    draw = np.random.default_rng(0)
    angle = 2 * np.pi / n * np.outer(np.arange(n), frequencies)
    size = np.linspace(1, smallest, len(frequencies))
    waves = np.concatenate([size * np.cos(angle), narrow * size * np.sin(angle)], axis=1)
    frame = np.linalg.qr(draw.normal(size=(16, 16)))[0]
    points = waves @ frame[: waves.shape[1]]
    spread = np.sqrt((points**2).mean() * noise / (1 - noise))
    return points + spread * draw.normal(size=points.shape) + 3.0


# ---------------------------------------------------------------------- waves and circles


@pytest.mark.parametrize("n", [2, 3, 4, 7, 12, 113])
def test_the_fourier_basis_is_orthonormal_and_its_rows_are_waves(n: int) -> None:
    basis = fourier_basis(n)
    np.testing.assert_allclose(basis @ basis.T, np.eye(n), atol=1e-13)
    for row in range(1, n):
        power = np.abs(np.fft.fft(basis[row])) ** 2
        assert int(power[: n // 2 + 1].argmax()) == (row + 1) // 2


def of_components(vectors: np.ndarray) -> float:
    """The published circularity: the mean over four principal components of their best frequency's share."""
    n = len(vectors)
    points = np.linalg.svd(vectors - vectors.mean(axis=0), full_matrices=False)[0]
    return float(np.mean([min(1, 2 / n * (np.abs(np.fft.fft(v)) ** 2)[1 : (n + 1) // 2].max()) for v in points.T[:4]]))


@pytest.mark.parametrize("n", [59, 113, 60, 64])
@pytest.mark.parametrize("noise", [0.0, 0.02])
def test_circles_of_equal_size_are_found_where_components_mix_them(n: int, noise: float) -> None:
    """Four equal circles have eight equal singular values: any rotation of their components is as good."""
    vectors = circle_points(n, 3, 7, 12, 25, smallest=1.0, noise=noise)
    circles = circles_of(vectors)
    assert sorted(circle.frequency for circle in circles) == [3, 7, 12, 25]
    assert circularity(circles) == pytest.approx(1 - noise, abs=0.015)
    for circle in circles:
        assert circle.variance == pytest.approx((1 - noise) / 4, abs=0.02)
        assert min(circle.ratio, circle.purity) > 0.9
    assert of_components(vectors) < 0.8


def test_circles_are_found_with_their_points_and_nothing_else() -> None:
    vectors = circle_points(59, 4, 11, 20)
    circles = circles_of(vectors)
    assert [circle.frequency for circle in circles] == [4, 11, 20]
    assert [circle.variance for circle in circles] == pytest.approx([1 / 1.8125, 0.5625 / 1.8125, 0.25 / 1.8125])
    assert circularity(circles) == pytest.approx(1)
    for circle, radius in zip(circles, (1, 0.75, 0.5), strict=True):
        np.testing.assert_allclose(np.linalg.norm(circle.points, axis=1), radius)
    parts = sum(circle.vectors - vectors.mean(axis=0) for circle in circles)
    np.testing.assert_allclose(parts + vectors.mean(axis=0), vectors, atol=1e-12)


@pytest.mark.parametrize("narrow", [0.8, 0.5, 0.25])
def test_an_ellipse_is_as_circular_as_its_best_circle(narrow: float) -> None:
    vectors = circle_points(59, 4, 11, smallest=1.0, narrow=narrow)
    circles = circles_of(vectors)
    angle = np.linspace(0, 2 * np.pi, 1000, endpoint=False)
    ellipse = np.exp(1j * angle).real + 1j * narrow * np.exp(1j * angle).imag
    fitted = (1 + narrow) / 2 * np.exp(1j * angle)
    explained = 1 - (np.abs(ellipse - fitted) ** 2).sum() / (np.abs(ellipse) ** 2).sum()
    assert circularity(circles) == pytest.approx(explained)
    assert [circle.ratio for circle in circles] == pytest.approx([narrow, narrow])


@pytest.mark.parametrize("n", [12, 60])
def test_the_alternating_frequency_and_a_lone_cosine_are_lines(n: int) -> None:
    number = np.arange(n)
    direction = np.random.default_rng(0).normal(size=(1, 8))
    for line in (np.where(number % 2, -1.0, 1.0), np.cos(2 * np.pi * 3 * number / n)):
        assert circles_of(line[:, None] @ direction) == []
    circle = circle_points(n, 2)
    both = circle + 0.3 * np.where(number % 2, -1.0, 1.0)[:, None] * np.eye(16)[0]
    assert [one.frequency for one in circles_of(both)] == [2]
    assert circularity(circles_of(both)) < 0.95


@pytest.mark.parametrize(("n", "width"), [(113, 128), (113, 8), (59, 16), (60, 64), (23, 16), (7, 64), (5, 64), (4, 8)])
def test_random_and_one_hot_embeddings_do_not_lie_on_circles(n: int, width: int) -> None:
    for seed in range(5):
        vectors = np.random.default_rng(seed).normal(size=(n, width))
        assert circularity(circles_of(vectors)) < 0.3
    assert circles_of(np.linspace(1, 0.5, n)[:, None] * np.eye(n)) == []
    assert circles_of(np.ones((n, width))) == []


# ---------------------------------------------------------------------- forms


def plain_forms(k: int, n: int) -> dict[str, list[np.ndarray]]:
    """The forms over all n^3 triples, as they are written."""
    a, b, c = np.meshgrid(*[np.arange(n)] * 3, indexing="ij")
    w = 2 * np.pi * k / n
    clock, length = np.cos(w * (a + b - c)), np.abs(np.cos(w * (a - b) / 2))
    halves = [2 * np.pi * u / n for u in range(n) if (2 * u - k) % n == 0]
    whole = 2 * length * (np.abs(np.cos(w * (a + b - c) / 2)) - np.abs(np.sin(w * (a + b - c) / 2)))
    return {
        "clock": [clock],
        "pizza": [length * clock],
        "whole pizza": [whole],
        "accompanying": [-2 * np.cos(u * (a - b)) * np.cos(u * (a + b - c)) for u in halves],
    }


@pytest.mark.parametrize(("n", "k"), [(7, 2), (11, 5), (12, 4), (12, 3), (12, 6)])
def test_the_variance_explained_is_that_of_a_fit_over_all_triples(n: int, k: int) -> None:
    plain = plain_forms(k, n)
    assert set(plain) == set(FORMS)
    cube = np.random.default_rng(0).normal(size=(n, n, n)) + sum(several[0] for several in plain.values() if several)
    centred = cube - cube.mean(axis=2, keepdims=True)
    logits = Logits.of(cube)
    for name, several in forms(k, n).items():
        assert len(several) == len(plain[name])
        for form, written in zip(several, plain[name], strict=True):
            x = written - written.mean(axis=2, keepdims=True)
            factor = np.vdot(x, centred) / np.vdot(x, x)
            left = ((centred - max(factor, 0) * x) ** 2).sum() / (centred**2).sum()
            assert logits.explained(form) == pytest.approx(1 - left, abs=1e-12)
            assert Logits.of(5 * written).explained(form) == pytest.approx(1)
            assert Logits.of(-written).explained(form) == 0


def test_clock_and_pizza_explain_four_fifths_of_each_other() -> None:
    for one, other in (("clock", "pizza"), ("pizza", "clock")):
        share = Logits.of(plain_forms(5, 59)[one][0]).explained(forms(5, 59)[other][0])
        assert share == pytest.approx(8 / math.pi**2, abs=1e-3)


def test_distance_irrelevance_is_0_by_distance_1_by_place_and_not_defined_for_a_constant() -> None:
    a, b, c = np.meshgrid(*[np.arange(13)] * 3, indexing="ij")
    right = (a + b - c) % 13 == 0
    assert distance_irrelevance(right * np.cos((a - b) % 13)) == pytest.approx(0, abs=1e-12)
    assert distance_irrelevance(right * np.cos((a + b) % 13)) == pytest.approx(1)
    assert distance_irrelevance(right * 5.0) is None
    cube = np.random.default_rng(3).normal(size=(13, 13, 13))
    logit = np.array([[cube[i, j, (i + j) % 13] for j in range(13)] for i in range(13)])
    rows = [[logit[i, (i + d) % 13] for i in range(13)] for d in range(13)]
    assert distance_irrelevance(cube) == pytest.approx(np.mean([np.std(row) for row in rows]) / np.std(logit))
    np.testing.assert_array_equal(by_distance(cube), rows)


# ---------------------------------------------------------------------- the model


@pytest.mark.parametrize("form", ["a+b=", "ab"])
def test_gradients_are_those_of_finite_differences_position_by_position(form: str) -> None:
    task = Modular(p=5, form=form)
    subject = untrained(task, act_fn="gelu", causal=form == "a+b=")
    structure = task.structure()
    drawn = torch.randint(5, (3, 30), generator=torch.Generator().manual_seed(7)).T.tolist()
    assert any(a == b for a, b, _ in drawn)
    expected = []
    for a, b, c in drawn:
        tokens = task.sequences(torch.tensor([a] * 8), torch.tensor([b] * 8))[:, : task.prompt_length]
        units = torch.eye(8, dtype=torch.double)[:, None]  # one row for each entry of the vector that is moved
        moved = {
            (place, step): subject.run(tokens, edits=[Add("embed", value=units, scale=step, pos=place)])[0][:, -1, c]
            for place in task.operand_positions
            for step in (1e-4, -1e-4)
        }
        one, other = ((moved[place, 1e-4] - moved[place, -1e-4]).numpy() for place in task.operand_positions)
        expected.append(one @ other / np.linalg.norm(one) / np.linalg.norm(other))
    np.testing.assert_allclose(gradient_cosines(subject.model, task, structure, 30, 7), expected, atol=1e-6)


def test_a_model_left_with_one_circle_is_the_model_with_those_embeddings() -> None:
    planted = PLANTED.load("pizza")()
    subject = subject_of(planted, "pizza").to_dtype(torch.float64)
    circle = circles_of(subject.token_embedding().numpy())[1]
    other = copy.deepcopy(subject.model)
    other.embed.weight.copy_(torch.from_numpy(circle.vectors))
    wanted = other(planted.task.at(torch.arange(59**2))[:, :2])[:, 1].view(59, 59, 59)
    alone = pair_logits(subject, planted.task, torch.from_numpy(circle.vectors))
    np.testing.assert_allclose(alone, wanted, atol=1e-12)


def test_logits_stand_in_the_order_of_the_group() -> None:
    task = Modular(p=7, operation="*")
    structure = task.structure()
    logits = pair_logits(untrained(task), task)
    cube = cube_of(logits, structure)
    assert cube.shape == (6, 6, 6)
    for g, h, k in [(0, 0, 0), (1, 4, 2), (5, 3, 1)]:
        assert cube[g, h, k] == logits[3**g % 7, 3**h % 7, 3**k % 7]  # 3 is the smallest primitive root


# ---------------------------------------------------------------------- verdicts


def test_the_clock_is_a_clock(found: dict[str, ag.Finding]) -> None:
    facts = found["clock"].facts
    assert facts["verdict"] == "clock"
    assert facts["accuracy"] == 1
    assert abs(facts["symmetricity"]) < 5 * facts["symmetricity_error"] < 0.05
    assert min(facts["untrained"]) > 0.99  # at random, its heads look at both operands alike
    assert facts["distance_irrelevance"] is None  # the right answer has the same logit for all pairs
    assert [(row["frequency"], row["reads_as"]) for row in facts["circles"]] == [(k, "clock") for k in KEY_FREQUENCIES]
    assert facts["isolated"]["clock"] == pytest.approx(1)
    assert facts["cosines"] == pytest.approx(1)


def test_the_pizza_is_a_pizza(found: dict[str, ag.Finding]) -> None:
    facts, mechanism = found["pizza"].facts, PLANTED.load("pizza")().mechanism
    assert facts["verdict"] == "pizza"
    assert facts["symmetricity"] == pytest.approx(0.991, abs=0.002)
    assert max(facts["untrained"]) < 0.3
    assert facts["distance_irrelevance"] < 0.2
    assert facts["circularity"] == pytest.approx(1)
    planted = dict.fromkeys(mechanism.frequencies, "pizza") | dict.fromkeys(mechanism.accompanying, "accompanying")
    assert {row["frequency"]: row["reads_as"] for row in facts["circles"]} == planted
    for row in facts["circles"]:
        if row["reads_as"] == "pizza":
            assert row["fits"]["pizza"] > 0.999
            assert row["fits"]["clock"] == pytest.approx(8 / math.pi**2, abs=1e-3)
        else:
            assert row["fits"]["accompanying"] == pytest.approx(1)
    assert facts["cosines"] > 0.98  # the accompanying circles hide what is weak


def test_panels_say_what_the_facts_say(found: dict[str, ag.Finding]) -> None:
    for name, n in {"clock": 113, "pizza": 59}.items():
        finding = found[name]
        rows = [list(row["fits"].values()) for row in finding["circles"]]
        np.testing.assert_array_equal(finding["circles alone"].values, rows)
        np.testing.assert_allclose(finding["gradients"].values.sum(axis=1), 1)
        assert finding["right logit"].values.shape == (n, n)
        assert [panel.name for panel in finding.panels] == ["circles alone", "gradients", "right logit", "circles"]
        assert ag.Finding.from_json(finding.to_json()).facts == finding.facts
    clock, pizza = (found[name]["right logit"] for name in ("clock", "pizza"))
    assert np.abs(clock.values).max() < 1e-4  # the same for all pairs, and drawn so
    assert clock.span == pytest.approx((-10, 10))
    assert pizza.values.std(axis=1).max() < 0.3 * pizza.values.std()


def test_every_figure_is_explained_and_tables_hold_the_facts(found: dict[str, ag.Finding]) -> None:
    for finding in found.values():
        assert finding.about
        assert all(panel.caption for panel in finding.panels)
        tests, circles = finding.tables
        values = {row[0]: row[1] for row in tests.rows}
        assert values["gradient symmetricity s_g"] == finding["symmetricity"]
        assert values["one circle at a time: pizza"] == finding["isolated"]["pizza"]
        assert [(row[0], row[-1]) for row in circles.rows] == [
            (row["frequency"], row["reads_as"]) for row in finding["circles"]
        ]


def test_the_former_name_of_the_number_of_triples_works_and_warns() -> None:
    with pytest.warns(FutureWarning, match="n_inputs"):
        assert ag.lenses.clock("planted:pizza", n_triples=50)["triples"] == 50


@pytest.mark.parametrize("name", ["clock", "pizza"])
def test_shuffled_and_random_models_have_not_learned_it(name: str) -> None:
    planted = PLANTED.load(name)()
    subjects = [subject_of(shuffled(planted, seed), "shuffled") for seed in range(1)]
    subjects.append(Subject("random", build(planted.model.cfg, 0), planted.task))
    for subject in subjects:
        facts = ag.lenses.clock(subject, n_inputs=50).facts
        assert facts["verdict"] == "not learned"
        assert all(row["reads_as"] == "unclear" for row in facts["circles"])


def lookup(p: int, frequencies: Sequence[int] = (), apart: bool = False) -> Subject:
    """Addition from memory: one neuron for each pair of numbers, which writes the right answer, or with `frequencies`
    its cosines. One head attends to both operands alike, or with `apart` one to each, and the pairs are ordered.
    """
    task = Modular(p=p, form="ab")
    pairs = [(a, b) for a in range(p) for b in range(0 if apart else a, p)]
    stream = Stream(number=p, place=3, first=p, second=p, answer=p)
    model = blank(stream, d_vocab=p, n_ctx=3, n_layers=1, n_heads=2, d_head=p, d_mlp=len(pairs), causal=False)
    size = torch.linspace(0.1, 0.05, p)[:, None]
    number, first, second, answer = (stream.read(name) for name in ("number", "first", "second", "answer"))
    fill(model, tokens=size * number, places=stream.read("place"), unembedding=20 * answer)
    if apart:
        for operand, rows in enumerate((first, second)):
            looks = {1: (operand,)}
            plant_by_position(model, stream, (0, operand), looks, value=number / size, out=rows.mT)
    else:
        nowhere = torch.zeros(1, stream.size)
        plant(model, (0, 0), query=nowhere, key=nowhere, value=2 / size * number, out=stream.write("first"))
        second = first
    wave = waves(p, frequencies) if frequencies else torch.eye(p)
    mlp = feed_forward(model, 0)
    for neuron, (a, b) in enumerate(pairs):
        alike = a == b and not apart
        mlp.w_in.weight[neuron] = first[a] if alike else first[a] + second[b]
        mlp.w_in.bias[neuron] = -1
        loud = 3 if alike else 1  # two of a number also reach the neurons of its other pairs
        mlp.w_out.weight[:, neuron] = loud * (wave @ wave[(a + b) % p]) @ answer
    return Subject("lookup", model, task)


def test_a_table_of_answers_is_neither_though_its_operands_have_one_effect() -> None:
    facts = ag.lenses.clock(lookup(23), n_inputs=200).facts
    assert facts["accuracy"] == 1
    assert facts["circularity"] < 0.3
    assert facts["verdict"] == "neither"
    assert "do not lie on circles" in facts["reason"]
    assert facts["symmetricity"] > 0.98
    assert ag.lenses.clock(lookup(23), n_inputs=200, circular=0)["verdict"] == "neither"


@pytest.mark.parametrize("apart", [False, True])
def test_cosines_from_a_table_are_not_called_neither_nor_a_clock(apart: bool) -> None:
    """The logits are those of a clock, and nothing in the embeddings is: the test has nothing to work on."""
    finding = ag.lenses.clock(lookup(23, (2, 5, 9), apart), n_inputs=200)
    facts = finding.facts
    assert facts["accuracy"] == 1
    assert facts["cosines"] > 0.95
    assert [row["frequency"] for row in facts["logit_frequencies"]] == [2, 5, 9]
    assert facts["circularity"] < 0.3
    assert facts["verdict"] == "test does not apply"
    assert "the logits are cosines" in finding.claim
    assert "do not lie on circles" in finding.claim


def test_a_clock_with_equal_circles_and_much_else_in_its_embeddings_is_a_clock() -> None:
    """Equal circles, rotated, on 60 % of the variance: the rest is read by no head."""
    planted = PLANTED.load("clock")()
    model, n = planted.model, len(KEY_FREQUENCIES)
    size = torch.linspace(1, 0.6, n).repeat(2)
    model.embed.weight[:113, : 2 * n] /= size
    model.blocks[0].attn.v.weight[:, : 2 * n] *= size
    subject = Subject("equal", model, planted.task)
    facts = ag.lenses.clock(subject, n_inputs=200).facts
    assert (facts["verdict"], facts["circularity"]) == ("clock", pytest.approx(1))
    unread = slice(model.embed.weight.shape[1] - 2 * n, None)  # where the sum is written
    noise = torch.randn(113, 2 * n, generator=torch.Generator().manual_seed(0))
    model.embed.weight[:113, unread] += 0.05 * noise
    model.W_U[:113] *= 30
    model.embed.weight[:113, : 2 * n] *= 0.06
    model.blocks[0].attn.v.weight[:, : 2 * n] /= 0.06
    facts = ag.lenses.clock(subject, n_inputs=200).facts
    assert facts["circularity"] < 0.8
    assert not facts["tests"]["numbers on circles"]
    assert facts["verdict"] == "clock"
    assert {row["frequency"] for row in facts["circles"]} == set(KEY_FREQUENCIES)


def test_a_clock_of_differences_is_a_clock() -> None:
    planted = PLANTED.load("clock")()
    planted.model.blocks[0].attn.v.weight[15:20] *= -1  # the sines of the second operand
    facts = ag.lenses.clock(Subject("minus", planted.model, Modular(p=113, operation="-")), n_inputs=200).facts
    assert (facts["accuracy"], facts["verdict"]) == (1, "clock")
    assert sorted(row["frequency"] for row in facts["circles"]) == sorted(KEY_FREQUENCIES)


def test_a_clock_of_products_is_a_clock_on_the_logarithms() -> None:
    planted = PLANTED.load("clock")()
    task = Modular(p=113, operation="*")
    powers = torch.from_numpy(task.structure().first)
    angle = 2 * math.pi / 112 * torch.outer(torch.arange(112), torch.tensor(KEY_FREQUENCIES))
    size = torch.linspace(1, 0.6, 5).repeat(2)
    wave = torch.cat([angle.cos(), angle.sin()], dim=1)
    model = planted.model
    model.embed.weight[0], model.W_U[0] = 0, 0
    model.embed.weight[powers, :10] = size * wave
    total = model.W_U[1].abs().topk(10).indices.sort().values
    model.W_U[powers[:, None], total] = 20 * wave
    facts = ag.lenses.clock(Subject("times", model, task), n_inputs=200, accurate=0.98).facts
    assert facts["accuracy"] == pytest.approx(112**2 / 113**2, abs=1e-3)  # what has a zero has no logarithm
    assert facts["verdict"] == "clock"
    assert sorted(row["frequency"] for row in facts["circles"]) == sorted(KEY_FREQUENCIES)
    assert judge(facts | {"tests": outcomes(facts, BOUNDS)})[0] == "not learned"  # by the usual bound


@pytest.mark.parametrize(
    ("change", "verdict"),
    [
        ({}, "pizza"),
        ({"accuracy": 0.98}, "not learned"),
        ({"accuracy": 0.98, "circularity": 0.1}, "not learned"),
        ({"circularity": 0.1}, "pizza"),
        ({"symmetricity": None}, "neither"),
        ({"elements": 4}, "test does not apply"),
        ({"isolated": {"clock": 0.8, "pizza": 0.7, "accompanying": 0.2}}, "neither"),
        ({"isolated": {"clock": 0.1, "pizza": 0.4, "accompanying": 0.1}}, "test does not apply"),
        ({"isolated": {"clock": 0.1, "pizza": 0.4, "accompanying": 0.1}, "cosines": 0.1}, "neither"),
        ({"isolated": {"clock": 0.01, "pizza": 0.0, "accompanying": 0.0}, "symmetricity": 0.3}, "test does not apply"),
        ({"isolated": {"clock": 0.49, "pizza": 0.41, "accompanying": 0.0}, "symmetricity": 0.2}, "clock"),
        ({"symmetricity": 0.9}, "neither"),
        ({"symmetricity": 0.3}, "neither"),
        ({"symmetricity": 0.3, "isolated": {"clock": 0.8, "pizza": 0.7, "accompanying": 0}}, "clock"),
        (
            {"symmetricity": 0.3, "isolated": {"clock": 0.8, "pizza": 0.7, "accompanying": 0}, "cosines": 0.5},
            "neither",
        ),
    ],
)
def test_the_rules_of_the_verdict(change: dict, verdict: str) -> None:
    facts = FINE | change
    assert judge(facts | {"tests": outcomes(facts, BOUNDS)})[0] == verdict


# ---------------------------------------------------------------------- doors and errors


@pytest.mark.parametrize(
    ("subject", "options", "error", "says"),
    [
        ("planted:reversal", {}, TaskMismatchError, "planted:reversal does not add modulo a number"),
        ("planted:induction", {}, TaskMismatchError, "reads free text"),
        (untrained(Group(group="D3")), {}, TaskMismatchError, "does not add modulo a number"),
        (untrained(Modular(p=6, operation="*")), {}, TaskMismatchError, "prime modulus"),
        (untrained(Modular(p=257)), {}, TaskMismatchError, "257 elements"),
        ("planted:pizza", {"n_inputs": 1}, ConfigError, "n_inputs is 1"),
    ],
)
def test_what_it_cannot_judge_is_one_line(
    subject: str | Subject, options: dict, error: type[AlgoscopeError], says: str
) -> None:
    with pytest.raises(error, match=says) as caught:
        ag.lenses.clock(subject, **options)
    assert "\n" not in str(caught.value)


def test_the_command_says_pizza(run) -> None:
    code, said, _ = run("lens", "clock", "planted:pizza", "--n-inputs", 100, "--json", "--quiet")
    assert (code, json.loads(said)["verdict"]) == (0, "pizza")
    code, said, _ = run("lens", "clock", "planted:pizza", "--n-inputs", 100, "--quiet")
    assert said.startswith("pizza: both operands have the same gradient (s_g 0.99")


def test_the_page_says_it_for_sums_and_is_not_asked_for_letters(found: dict[str, ag.Finding]) -> None:
    subject = ag.open("planted:pizza")
    verdict = ag.certify(subject, progress=False)
    for name, says in {
        "clock": "Clock: the operands have different gradients",
        "pizza": "Pizza: both operands have the same gradient",
    }.items():
        page = render(subject, {"verdict": verdict, "clock": found[name]})
        section = page[page.index('<section id="clock">') :]
        assert says in section
        assert section.count('class="plot"') == 4 + len(found[name]["circles"])
    assert "clock" in questions_of(subject, prompts_of(subject))
    reversal = ag.open("planted:reversal")
    assert "clock" not in questions_of(reversal, prompts_of(reversal))


@pytest.mark.parametrize("p", [2, 3, 4, 5, 6])
def test_the_smallest_moduli_are_measured(p: int) -> None:
    task = Modular(p=p, form="ab")
    for width in (1, 2, 8):
        subject = untrained(task, d_model=width, n_heads=1, d_head=2)
        finding = ag.lenses.clock(subject, n_inputs=5, accurate=0.0)
        assert finding["verdict"] in ("neither", "test does not apply")
        assert (finding["verdict"] == "test does not apply") >= (p < 5)
        assert 0 <= ag.lenses.embeddings(subject)["circularity"]["after"] <= 1
