"""The Fourier lens: found where it was planted, not named where it is not, and exact against the plain formulas."""

import dataclasses
import json
import math

import numpy as np
import pytest
import torch

import algoscope as ag
from algoscope.config import ModelConfig
from algoscope.core.draw import figure
from algoscope.core.errors import SubjectError, TaskMismatchError
from algoscope.core.finding import Finding
from algoscope.lenses.modular_arithmetic._neuron_frequencies import LastNeurons, replacements
from algoscope.lenses.modular_arithmetic.fourier_lens import fourier
from algoscope.lenses.modular_arithmetic.group_characters import components_of
from algoscope.lenses.modular_arithmetic.logit_spectrum import (
    best_fits,
    bound_of,
    by_product,
    fit_of,
    gini,
    in_block,
    part_of,
    restricted,
    scores,
    scores_by_product,
    spread,
    transform,
)
from algoscope.lenses.modular_arithmetic.operand_pairs import has_pairs, pairs_of
from algoscope.lenses.modular_arithmetic.weight_spectrum import weights_of
from algoscope.networks.build import build
from algoscope.networks.evaluation import cross_entropy
from algoscope.networks.transformer import Transformer
from algoscope.planted.handwritten import Stream, blank, feed_forward, fill, plant_by_position
from algoscope.planted.models import KEY_FREQUENCIES, LOGIT, shuffled, waves
from algoscope.planted.table import PLANTED
from algoscope.subjects.edits import Patch
from algoscope.subjects.planted import subject_of
from algoscope.subjects.subject import Subject
from algoscope.tasks.groups.binary import Binary
from algoscope.tasks.groups.group import Group
from algoscope.tasks.groups.modular import Modular

KEYS = list(KEY_FREQUENCIES)


# ---------------------------------------------------------------------- models made for these tests


def table_model(task: Binary, logits: torch.Tensor) -> Subject:
    """A model that says logits [a b answer] exactly, in the group's order: one neuron for each pair, which no
    frequency has anything to do with. relu(a_i + b_j - 1) is 1 for the pair (i, j) alone.
    """
    structure, n = task.structure(), task.order
    size = structure.order
    stream = Stream(number=n, place=task.n_ctx, first=n, second=n, answer=n)
    model = blank(
        stream, d_vocab=task.d_vocab, n_ctx=task.n_ctx, n_layers=1, n_heads=2, d_head=max(n, task.n_ctx), d_mlp=size**2
    )
    fill(model, tokens=stream.read("number"), places=stream.read("place"), unembedding=stream.read("answer"))
    last = task.prompt_length - 1
    for head, (name, place) in enumerate(zip(("first", "second"), task.operand_positions, strict=True)):
        looks = {last: (place,)}
        plant_by_position(model, stream, (0, head), looks, value=stream.read("number"), out=stream.write(name))
    mlp = feed_forward(model, 0)
    first, second = torch.from_numpy(structure.first), torch.from_numpy(structure.second)
    pairs = stream.read("first")[first][:, None] + stream.read("second")[second]
    mlp.w_in.weight.copy_(pairs.flatten(0, 1))
    mlp.w_in.bias.fill_(-1)
    by_token = torch.zeros(size**2, n)
    by_token[:, torch.from_numpy(structure.answer)] = logits.flatten(0, 1).float()
    mlp.w_out.weight.copy_(stream.write("answer") @ by_token.T)
    return Subject("table", model, task)


def wave_logits(task: Binary, heights: dict[int | str, float]) -> torch.Tensor:
    """sum of height * wave(a b c^-1), by pair and answer in the group's order."""
    components = components_of(task.structure())
    wave = sum(heights[part.label] * part.normalised for part in components.varying if part.label in heights)
    return torch.from_numpy(wave[components.quotients][task.structure().table])


def reordered_clock(task: Modular) -> Subject:
    """`planted:clock` for another operation of the same kind: its numbers stand for elements of the group in another
    order, and the second head turns the sines round where the second operand stands for its inverse.
    """
    planted = PLANTED.load("clock")()
    model, structure = planted.model, task.structure()
    wave, n = waves(structure.order, KEYS), len(KEYS)
    for weight in (model.embed.weight, model.W_U):
        old = weight[:113].clone()
        basis = torch.linalg.lstsq(waves(113, KEYS), old).solution  # what is done with each wave
        weight[:113] = 0
        weight[torch.from_numpy(structure.first)] = wave @ basis
    if task.operation == "-":
        attn = model.block(0).attn
        attn.v.weight[attn.d_head + n : attn.d_head + 2 * n] *= -1
    return Subject(f"clock {task.operation}", model, task)


def random_model(seed: int, task: Binary | None = None, **shape) -> Subject:
    task = task or Modular(p=11, form="ab=")
    fields = {"d_model": 16, "n_layers": 1, "n_heads": 2, "d_mlp": 24, "init_embed_std": 0.5} | shape
    cfg = ModelConfig(d_vocab=task.d_vocab, n_ctx=task.n_ctx, **fields)
    return Subject(f"random {seed}", build(cfg, seed), task)


def random_logits(task: Binary, seed: int = 0) -> torch.Tensor:
    n = task.structure().order
    return torch.randn(n, n, task.order, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def of(finding: Finding, what: str, keys: list | None = None, over: str = "all pairs") -> dict:
    """A row of the losses; by default with all keys."""
    rows = [row for row in finding["losses"] if row["what"] == what and row["over"] == over]
    return next(row for row in rows if keys is None or row["keys"] == keys)


def key_labels(finding: Finding) -> list:
    return [key["component"] for key in finding["keys"]]


@pytest.fixture(scope="module")
def clock() -> Finding:
    return fourier("planted:clock")


# ---------------------------------------------------------------------- planted: found


def test_the_planted_clock_is_found_with_its_frequencies(clock):
    assert clock["verdict"] == "characters"
    assert key_labels(clock) == clock["keys_by_neurons"] == KEYS
    assert clock["right"] == clock["pairs"] == 113**2
    assert clock["logit_fve"] == pytest.approx(1, abs=1e-6)
    for key in clock["keys"]:
        assert key["alpha"] == pytest.approx(LOGIT, rel=1e-5)
        assert key["fve"] == pytest.approx(1 / len(KEYS), abs=1e-6)
    assert of(clock, "restricted")["loss"] == pytest.approx(of(clock, "full")["loss"], rel=1e-3)
    assert of(clock, "excluded")["loss"] == pytest.approx(math.log(115), rel=1e-5)  # nothing is left of 115 logits
    assert of(clock, "excluded")["loss"] > math.log(113)
    assert of(clock, "restricted", [14])["loss"] > 1 > of(clock, "excluded", [14])["loss"]
    assert all(row["accuracy"] == 1 for row in clock["losses"] if row["keys"] != KEYS)
    assert "5 frequencies (14, 35, 41, 42, 52) explain 100.0% of the logit variance" in clock.claim


def test_the_weights_and_neurons_of_the_planted_clock_are_what_was_written(clock):
    [neurons] = clock["neurons"]
    assert [row["neurons"] for row in neurons["counts"]] == [8] * len(KEYS)  # four products, each of either sign
    # relu(cos): 1/pi^2 constant and 1/8 in its own frequency, of 1/4; times a cosine, which has all in its own
    expected = (1 / math.pi**2 + 1 / 8) * 4
    assert neurons["mean_fve"] == pytest.approx(expected, abs=1e-3)
    assert neurons["mean_share_of_product"] == pytest.approx(1 / 4, abs=1e-3)  # of cos cos: half, and half of relu
    assert clock["w_l_beyond_keys"]["norm"] < 1e-6
    assert neurons["fitted_share_of_variance"] == pytest.approx(1)
    assert all(row["fve"] == pytest.approx(1, abs=1e-6) for row in clock["directions"])
    for name in ("energy W_U", "energy W_L"):
        [shares] = clock[name].values
        assert shares[[k - 1 for k in KEYS]] == pytest.approx(np.full(len(KEYS), 1 / len(KEYS)), abs=1e-5)
    assert clock["energy W_E"].values[0][[k - 1 for k in KEYS]].sum() == pytest.approx(1, abs=1e-6)
    for head, seen in enumerate(("first operand", "second operand")):
        assert clock["attention"][head]["mean"][seen] == pytest.approx(1)
        assert clock["attention"][head]["spread"][seen] == pytest.approx(0, abs=1e-6)


def test_the_mechanism_of_the_planted_clock_proves_every_answer(clock):
    bound = clock["bound"]
    d = np.arange(1, 113)
    margin = min(LOGIT * sum(1 - np.cos(2 * np.pi * k * d / 113) for k in KEYS))
    assert bound["ideal_margin"] == pytest.approx(margin, rel=1e-4)
    assert bound["slack"] > 0
    assert bound["proved"] == bound["proved_by_rise"] == 113**2
    assert bound["others"] > 0


def test_every_figure_is_explained_and_tables_hold_the_facts(clock):
    assert clock.about
    assert all(panel.caption for panel in clock.panels)
    keys, checks, replaced = clock.tables
    assert [row[:4] for row in keys.rows] == [tuple(key.values()) for key in clock["keys"]]
    assert [row[-1] for row in checks.rows] == list(clock["checks"].values()) == [True] * 4
    assert [row[0] for row in replaced.rows] == [row["replaced"] for row in clock["replacements"]]
    assert keys.rows[0][4] == of(clock, "restricted", [KEYS[0]])["loss"]


def test_replacing_neurons_of_the_planted_clock_by_the_mechanism_costs_nothing(clock):
    changes = [row["change"] for row in clock["replacements"]]
    left = changes.pop(3)  # all neurons by what is left without W_L's directions
    assert changes == pytest.approx([0] * 4, abs=1e-3)
    assert clock["replacements"][3]["loss"] > math.log(113)
    assert left > 1


@pytest.mark.parametrize("task", [Modular(p=113, operation="-"), Modular(p=113, operation="*")])
def test_the_clock_is_found_under_other_operations(task):
    found = fourier(reordered_clock(task))
    assert found["verdict"] == "characters"
    assert key_labels(found) == found["keys_by_neurons"] == KEYS
    assert found["elements"] == (112 if task.operation == "*" else 113)
    assert found["logit_fve"] == pytest.approx(1, abs=1e-6)
    for name in ("energy W_E", "energy W_U", "energy W_L"):
        assert found[name].values[0][[k - 1 for k in KEYS]].sum() == pytest.approx(1, abs=1e-5)


def test_the_wrong_order_of_the_elements_has_no_frequencies():
    taken_for_addition = reordered_clock(Modular(p=113, operation="-"))
    subject = Subject("wrong task", taken_for_addition.model, Modular(p=113))
    assert fourier(subject)["verdict"] == "not learned"


# ---------------------------------------------------------------------- any group, any modulus


@pytest.mark.parametrize(
    ("task", "heights"),
    [
        (Modular(p=12), {1: 10.0, 6: 5.0}),  # an even and composite modulus, with its alternating wave
        (Modular(p=9, form="ab"), {2: 10.0, 3: 4.0}),
        (Group(group="D5"), {"2a": 20.0}),
        (Group(group="S4"), {"3b": 20.0}),
        (Group(group="C3xC3"), {"1b": 9.0, "1c": 9.0}),
    ],
)
def test_waves_given_as_logits_are_found_in_any_group(task, heights):
    found = fourier(table_model(task, wave_logits(task, heights)))
    assert found["accuracy"] == 1
    assert {key["component"]: key["alpha"] for key in found["keys"]} == pytest.approx(heights, rel=1e-4)
    assert found["logit_fve"] == pytest.approx(1, abs=1e-6)
    assert of(found, "restricted")["loss"] == pytest.approx(of(found, "full")["loss"], rel=1e-3)
    assert of(found, "excluded")["loss"] == pytest.approx(math.log(task.d_vocab), rel=1e-4)  # the signs have logits too
    assert found["verdict"] == "characters"
    [neurons] = found["neurons"]
    assert neurons["fitted"] == 0  # each neuron answers to a single pair


def test_a_part_of_the_logit_variance_is_printed_as_a_part():
    task = Group(group="S4")
    noise = 12 * torch.rand(24, 24, 24, generator=torch.Generator().manual_seed(0)) - 6  # the wave leads by 13.3
    found = fourier(table_model(task, wave_logits(task, {"3b": 20.0}) + noise))
    assert found["accuracy"] == 1
    assert found["logit_fve"] == pytest.approx(400 / 9 / (400 / 9 + 12), abs=0.02)  # variances of wave and noise
    assert found["verdict"] == "characters in part"
    assert f"explain {found['logit_fve']:.1%} of the logit variance" in found.claim
    assert "verified" not in found.claim


# ---------------------------------------------------------------------- not named where it is not


@pytest.mark.parametrize("seed", range(3))
def test_a_shuffled_clock_is_not_named(seed):
    found = fourier(subject_of(shuffled(PLANTED.load("clock")(), seed), "shuffled"))
    assert found["verdict"] == "not learned"
    assert found["logit_fve"] < 0.2
    assert "no mechanism is named" in found.claim


@pytest.mark.parametrize("seed", range(5))
def test_a_random_model_is_not_named(seed):
    found = fourier(random_model(seed))
    assert found["verdict"] == "not learned"
    assert not any(word in found.claim for word in ("cosine", "frequenc"))
    assert found["neurons"][0]["mean_share_of_product"] < 0.3


def test_a_table_of_answers_is_right_and_has_every_frequency_alike():
    task = Modular(p=11)
    right = torch.nn.functional.one_hot(torch.from_numpy(task.structure().table), 11)
    found = fourier(table_model(task, 30.0 * right))
    assert found["accuracy"] == 1
    assert key_labels(found) == [1, 2, 3, 4, 5]
    assert found["logit_fve"] == pytest.approx(1)  # whatever depends on the product alone is a sum of waves
    assert not found["checks"]["few"]
    assert found["verdict"] == "other"
    assert "they are not named as the mechanism: there are too many of them" in found.claim
    assert found["neurons"][0]["fitted"] == 0
    assert found["gini"]["W_E"] < 1e-6
    assert found["gini"]["W_L"] < 1e-6


def test_a_sparse_embedding_decides_nothing():
    planted = PLANTED.load("clock")()
    order = torch.randperm(113, generator=torch.Generator().manual_seed(0))
    planted.model.W_U[:113] = planted.model.W_U[order]
    found = fourier(subject_of(planted, "sparse"))
    assert found["energy W_E"].values[0][[k - 1 for k in KEYS]].sum() == pytest.approx(1, abs=1e-6)
    assert found["gini"]["W_E"] > 0.9
    assert found["neurons"][0]["fitted"] == 40
    assert found["verdict"] == "not learned"


def test_a_crowded_embedding_hides_nothing(clock):
    planted = PLANTED.load("clock")()
    old = planted.model
    crowd, extra = torch.randn(113, 40, generator=torch.Generator().manual_seed(0)), 40
    wide = Transformer(old.cfg.model_copy(update={"d_model": old.cfg.d_model + extra})).requires_grad_(False)
    for (name, new), weight in zip(wide.named_parameters(), old.parameters(), strict=True):
        new.zero_()
        new[tuple(slice(size) for size in weight.shape)] = weight
        if name == "embed.weight":
            new[:113, -extra:] = crowd  # directions that nothing reads
    found = fourier(Subject("crowded", wide, planted.task))
    assert found["gini"]["W_E"] < 0.3 < clock["gini"]["W_E"]
    assert found["verdict"] == "characters"
    assert key_labels(found) == KEYS
    assert found["logit_fve"] == pytest.approx(1, abs=1e-6)


def test_knowing_the_answer_otherwise_too_is_not_called_the_mechanism():
    task = Modular(p=23)
    right = torch.nn.functional.one_hot(torch.from_numpy(task.structure().table), 23)
    noise = 0.05 * torch.randn(23, 23, 23, generator=torch.Generator().manual_seed(0))
    wave = wave_logits(task, {1: 6.0, 5: 6.0, 8: 6.0})
    found = fourier(table_model(task, wave + noise + 20.0 * right), similar=0.15)
    assert found["accuracy"] == 1
    assert not found["checks"]["needed"]
    assert found["verdict"] == "other"
    assert "without them the loss is still below chance" in found.claim


# ---------------------------------------------------------------------- exact


CASES = [Modular(p=12), Modular(p=13, operation="-"), Modular(p=11, operation="*"), Group(group="S3")]


@pytest.mark.parametrize("task", CASES)
def test_projections_are_those_onto_every_function_of_the_product(task):
    """Against an explicit basis of functions of (a, b): each function of the product, spread over the pairs."""
    pairs = pairs_of(random_model(0, task))
    components, logits = components_of(pairs.structure), random_logits(task)
    table, n = pairs.structure.table, pairs.order
    chosen = [part.label for part in components.varying[::2]]
    explicit = components.rows_of(tuple(chosen))[:, table].reshape(-1, n * n) / np.sqrt(n)
    np.testing.assert_allclose(explicit @ explicit.T, np.eye(len(explicit)), atol=1e-10)
    flat = logits.flatten(0, 1).numpy()
    removed = explicit.T @ (explicit @ flat)
    means = by_product(logits, pairs.product)
    fast = part_of(means, components, chosen)[pairs.product].flatten(0, 1)
    np.testing.assert_allclose(fast, removed, atol=1e-10)
    kept = torch.from_numpy(removed + flat.mean(axis=0))
    target = pairs.answer[pairs.product].flatten()
    plain = torch.nn.functional.cross_entropy(kept, target, reduction="none").view(n, n)
    ours = scores_by_product(restricted(means, components, chosen), pairs)
    torch.testing.assert_close(ours.loss, plain, atol=1e-10, rtol=0)
    torch.testing.assert_close(ours.right, (kept.argmax(dim=-1) == target).view(n, n))
    without = torch.nn.functional.cross_entropy(torch.from_numpy(flat - removed), target, reduction="none").view(n, n)
    excluded = scores(logits, pairs, without=part_of(means, components, chosen))
    torch.testing.assert_close(excluded.loss, without, atol=1e-10, rtol=0)


def test_for_a_modulus_the_directions_are_the_published_ones():
    """(cos cos - sin sin) / sqrt 2 and (sin cos + cos sin) / sqrt 2 in the orthonormal basis."""
    task, k = Modular(p=13), 4
    pairs = pairs_of(random_model(0, task))
    components, logits = components_of(pairs.structure), random_logits(task)
    angle = 2 * np.pi * k * np.arange(13) / 13
    cos, sin = np.cos(angle) / np.linalg.norm(np.cos(angle)), np.sin(angle) / np.linalg.norm(np.sin(angle))
    one = (np.outer(cos, cos) - np.outer(sin, sin)) / np.sqrt(2)
    two = (np.outer(sin, cos) + np.outer(cos, sin)) / np.sqrt(2)
    plain = sum(np.tensordot(u, logits.numpy(), axes=2) * u[..., None] for u in (one, two))
    fast = part_of(by_product(logits, pairs.product), components, [k])[pairs.product]
    np.testing.assert_allclose(fast, plain, atol=1e-10)


@pytest.mark.parametrize("task", CASES)
def test_similarity_is_the_cosine_with_the_cube(task):
    pairs = pairs_of(random_model(0, task))
    components, logits = components_of(pairs.structure), random_logits(task)
    fit = fit_of(by_product(logits, pairs.product)[:, pairs.answer], spread(logits, pairs.answer), components)
    said = logits[..., pairs.answer]
    said = (said - said.mean(dim=-1, keepdim=True)).numpy()
    cubes = [part.normalised[components.quotients][pairs.structure.table] for part in components.parts]
    for number, cube in enumerate(cubes[1:], start=1):
        plain = (said * cube).sum() / np.linalg.norm(said) / np.linalg.norm(cube)
        assert fit.similarity[number] == pytest.approx(plain, abs=1e-10)
    fitted, *_ = np.linalg.lstsq(np.stack([cube.ravel() for cube in cubes[1:]], axis=1), said.ravel(), rcond=None)
    np.testing.assert_allclose(fit.alpha[1:], fitted, atol=1e-10)
    explained = (
        1 - ((said.ravel() - np.stack([c.ravel() for c in cubes[1:]], axis=1) @ fitted) ** 2).sum() / (said**2).sum()
    )
    assert (fit.similarity**2).sum() == pytest.approx(explained, abs=1e-10)


@pytest.mark.parametrize("task", [Modular(p=13), Modular(p=12), Group(group="S3")])
def test_neuron_fits_are_those_of_the_index_block(task):
    pairs = pairs_of(random_model(0, task))
    components, neurons = components_of(pairs.structure), random_logits(task)
    neurons[..., 0] = 3.0  # one that never changes
    fits = best_fits(neurons, pairs, components)
    spectrum = np.einsum("fa,gb,abm->fgm", components.basis, components.basis, neurons.numpy()) ** 2
    np.testing.assert_allclose(transform(neurons, components) ** 2, spectrum, atol=1e-10)
    spectrum[0, 0] = 0
    for neuron in range(1, neurons.shape[-1]):
        blocks = []
        for part in components.varying:
            rows = [0, *range(part.rows.start, part.rows.stop)]
            blocks.append(spectrum[np.ix_(rows, rows)][..., neuron].sum() / spectrum[..., neuron].sum())
        assert fits.part[neuron] == 1 + int(np.argmax(blocks))
        assert fits.share[neuron] == pytest.approx(max(blocks), abs=1e-10)
        part = components.parts[fits.part[neuron]]
        inside = in_block(neurons[..., neuron : neuron + 1], components, part)
        centred = neurons[..., neuron].var(correction=0)
        assert float(inside.var(correction=0) / centred) == pytest.approx(max(blocks), abs=1e-10)
        product = part_of(by_product(neurons, pairs.product), components, [part.label])[pairs.product][..., neuron]
        assert fits.of_product[neuron] == pytest.approx(float(product.var(correction=0) / centred), abs=1e-10)
    assert not fits.alive[0]
    assert fits.share[0] == fits.of_product[0] == 0


@pytest.mark.parametrize("task", [Modular(p=7, form="ab="), Group(group="S3")])
def test_replacements_are_what_the_model_says_when_patched(task):
    """The plain way: project with the two-dimensional basis, put the neurons into the model, run it."""
    shape = {"normalization_type": None, "tied_head": False, "init_embed_std": 1.0}
    subject = random_model(4, task, **shape).to_dtype(torch.float64)
    pairs = pairs_of(subject)
    components, n = components_of(pairs.structure), pairs.order
    logits, neurons = pairs.logits(subject), pairs.activations(subject)[0][0]
    weights = weights_of(subject, pairs)
    fits, keys = best_fits(neurons, pairs, components), list(components.parts[1:3])
    found = replacements(
        LastNeurons(neurons, weights.neurons_to_logits, logits, pairs, components), fits, keys, threshold=0.0
    )
    basis, table = components.basis, pairs.structure.table

    def loss(values: np.ndarray) -> float:
        patched = torch.from_numpy(values).reshape(n * n, 1, -1)
        edit = Patch(("post", 0), value=patched, pos=task.prompt_length - 1)
        said = subject.run(pairs.sequences[:, :-1], edits=[edit], at=slice(-1, None))[0][:, 0]
        return float(torch.nn.functional.cross_entropy(said, pairs.answer[pairs.product].flatten()))

    plain, blocks, products = neurons.numpy(), [], []
    for neuron in range(plain.shape[-1]):
        part = components.parts[fits.part[neuron]]
        rows = np.array([0, *range(part.rows.start, part.rows.stop)])
        spectrum = np.zeros((n, n))
        spectrum[np.ix_(rows, rows)] = (basis @ plain[..., neuron] @ basis.T)[np.ix_(rows, rows)]
        blocks.append(basis.T @ spectrum @ basis if fits.alive[neuron] else plain[..., neuron])
        functions = basis[rows][:, table].reshape(-1, n * n) / np.sqrt(n)
        products.append((functions.T @ (functions @ plain[..., neuron].ravel())).reshape(n, n))
    read = basis[keys[0].rows.start : keys[-1].rows.stop] @ weights.matrices["W_L"]  # [direction d_mlp]
    along = plain @ np.linalg.pinv(read) @ read
    expected = [loss(np.stack(blocks, axis=-1)), loss(np.stack(products, axis=-1)), loss(along), loss(plain - along)]
    assert [row["loss"] for row in found[:4]] == pytest.approx(expected, abs=1e-10)
    base = loss(plain)
    assert [row["change"] for row in found[:4]] == pytest.approx([one / base - 1 for one in expected], abs=1e-9)
    which = components.part_of_row
    inside = (which[:, None] == 0) | (which == which[:, None]) | (which == 0)
    inside &= (which <= 2)[:, None] & (which <= 2)
    kept = np.einsum("fa,gb,fgc->abc", basis, basis, transform(logits, components).numpy() * inside[..., None])
    target = pairs.answer[pairs.product].flatten()
    whole = float(torch.nn.functional.cross_entropy(torch.from_numpy(kept).flatten(0, 1), target))
    assert found[4]["loss"] == pytest.approx(whole, abs=1e-10)


@pytest.mark.parametrize("size", [0.5, 3.0, 30.0])
def test_the_bound_never_proves_a_wrong_answer(size):
    task = Modular(p=13)
    pairs = pairs_of(random_model(0, task))
    components = components_of(pairs.structure)
    logits = torch.zeros(13, 13, 15, dtype=torch.float64)
    logits[..., :13] = wave_logits(task, {1: 10.0, 5: 10.0})
    logits += size * random_logits(Modular(p=15), 1)[:13, :13]
    fit = fit_of(by_product(logits, pairs.product)[:, pairs.answer], spread(logits, pairs.answer), components)
    keys = [part for part in components.parts if part.label in (1, 5)]
    bound = bound_of(logits, pairs, components, fit, keys)
    right = logits.argmax(dim=-1) == pairs.answer[pairs.product]
    assert bound.proved <= bound.proved_by_rise <= int(right.sum())
    cube = sum(fit.alpha[part.label] * part.normalised for part in keys)[components.quotients][pairs.structure.table]
    residual = logits[..., :13].numpy() - cube
    assert bound.worst_range == pytest.approx(float(np.ptp(residual, axis=-1).max()))
    at_answer = np.take_along_axis(residual, pairs.structure.table[..., None], axis=-1)
    assert bound.worst_rise == pytest.approx(float((residual - at_answer).max()))
    lead = logits.gather(-1, pairs.answer[pairs.product][..., None])[..., 0] - logits[..., 13:].amax(dim=-1)
    assert bound.others == pytest.approx(float(lead.min()))
    assert (bound.slack > 0) == (size == 0.5)
    assert (bound.proved == 169) == (size == 0.5)


def test_gini_of_known_values():
    assert gini(np.ones(7)) == pytest.approx(0)
    assert gini(np.array([0.0, 0, 0, 5])) == pytest.approx(3 / 4)
    assert gini(np.array([1.0, 3.0])) == pytest.approx(1 / 4)
    x = np.random.default_rng(0).random(50)
    assert gini(x) == pytest.approx(np.abs(x[:, None] - x).mean() / (2 * x.mean()))  # its other definition
    assert np.isnan(gini(np.zeros(3)))


def test_cross_entropy_keeps_losses_that_float64_would_round_to_nothing():
    logits = torch.tensor([[100.0, 0.0, 0.0], [0.0, 100.0, 0.0]], dtype=torch.float64)
    target = torch.tensor([0, 0])
    loss = cross_entropy(logits, target)
    assert float(loss[0]) == pytest.approx(2 * math.exp(-100), rel=1e-12)
    assert float(loss[1]) == pytest.approx(100)
    anything = torch.randn(20, 5, dtype=torch.float64)
    number = torch.arange(20) % 5
    plain = torch.nn.functional.cross_entropy(anything, number, reduction="none")
    torch.testing.assert_close(cross_entropy(anything, number), plain, atol=1e-12, rtol=0)


# ---------------------------------------------------------------------- every shape of model


@pytest.mark.parametrize(
    ("shape", "left_out"),
    [
        ({"normalization_type": None, "tied_head": False}, set()),
        ({"normalization_type": "LN", "n_layers": 2}, {"W_L", "neuron input"}),
        ({"normalization_type": None, "d_mlp": None}, {"W_L", "neuron input"}),
        ({"normalization_type": None, "parallel": True}, {"neuron input"}),
        ({"normalization_type": None, "gated_mlp": True, "act_fn": "silu", "n_kv_heads": 1}, set()),
        ({"normalization_type": "RMS", "causal": False, "positions": "rotary"}, {"W_L", "neuron input"}),
    ],
)
def test_what_a_shape_does_not_define_is_left_out_with_a_reason(shape, left_out):
    found = fourier(random_model(0, Group(group="S3"), **shape))
    assert set(found["left_out"]) == left_out
    assert all(reason for reason in found["left_out"].values())
    names = {panel.name for panel in found.panels}
    assert ("energy W_L" in names) == ("replacements" in found.facts) == ("W_L" not in left_out)
    assert ("neuron input" in names) == ("neuron input" not in left_out)
    assert len(found.facts.get("neurons", [])) == (0 if shape.get("d_mlp", 1) is None else shape.get("n_layers", 1))
    assert {"energy W_E", "energy W_U", "logit similarity", "attention"} <= names
    again = Finding.from_json(found.to_json())
    assert json.loads(again.to_json()) == json.loads(found.to_json())


def test_composed_weights_say_what_the_model_does():
    """W_L against the model's own logits, W_E W_V W_O W_in against what its neurons receive."""
    task = Modular(p=7, form="ab")
    shape = {"normalization_type": None, "positions": None, "mlp_bias": False, "tied_head": False}
    subject = random_model(3, task, **shape).to_dtype(torch.float64)
    pairs = pairs_of(subject)
    neurons, attention = pairs.activations(subject)
    model = subject.model
    resid = subject.run(pairs.sequences[:, :-1], record=[("resid_mid", 0), ("pre", 0)])[1]
    mid = resid["resid_mid", 0][:, -1].view(7, 7, -1)
    from_neurons = pairs.logits(subject) - mid @ model.W_U.T
    weights = weights_of(subject, pairs).matrices
    torch.testing.assert_close(neurons[0] @ torch.from_numpy(weights["W_L"]).T, from_neurons, atol=1e-10, rtol=0)
    embedding = model.embed.weight
    received = (embedding @ model.block(0).mlp.w_in.weight.T)[None]  # by the second operand, which reads
    for head in range(2):
        composed = torch.from_numpy(weights[f"L0H{head}"])
        share = attention[0, head]
        received = received + share[..., :1] * composed[:, None] + share[..., 1:2] * composed
    torch.testing.assert_close(received, resid["pre", 0][:, -1].view(7, 7, -1), atol=1e-10, rtol=0)


def test_what_is_no_group_or_too_large_is_one_line():
    with pytest.raises(TaskMismatchError, match="the task addition is not the operation of a group"):
        fourier("planted:carry-adder")
    with pytest.raises(TaskMismatchError, match="reads free text"):
        fourier("planted:induction")
    with pytest.raises(TaskMismatchError, match="not the operation of a group"):
        fourier(random_model(0, Modular(p=10, operation="*")))
    large = random_model(0, Modular(p=500))
    with pytest.raises(SubjectError, match=r"500 elements, so 125,000,000 logits; this lens takes at most 421"):
        fourier(large)
    assert not has_pairs(large)
    assert not has_pairs(ag.open("planted:induction"))
    assert not has_pairs(ag.open("planted:carry-adder"))
    assert has_pairs(ag.open("planted:clock"))


def test_the_command_prints_the_share(run):
    code, out, _ = run("lens", "fourier", "planted:clock", "--json")
    assert code == 0
    said = json.loads(out)
    assert said["verdict"] == "characters"
    assert [key["component"] for key in said["keys"]] == KEYS


def test_a_threshold_on_a_logarithmic_scale_has_its_text_at_its_line(clock):
    panel = clock["logit similarity"]
    drawn = figure(panel)
    [line], [text] = drawn.layout.shapes, drawn.layout.annotations
    assert line.y0 == 0.005
    assert text.y == pytest.approx(math.log10(0.005))  # Plotly's own way
    linear = figure(dataclasses.replace(panel, scale="free"))
    assert linear.layout.annotations[0].y == 0.005
