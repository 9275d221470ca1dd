"""Planted models: each does what it is said to do, by the parts that are said to do it, and not once it is shuffled."""

import copy
import math
import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import algoscope as ag
from algoscope.data import seeded
from algoscope.networks.taps import Tap
from algoscope.networks.transformer import Transformer
from algoscope.planted.models import KEY_FREQUENCIES, Planted, shuffled
from algoscope.planted.pizza import COMPENSATION, DIRECTIONS, FREQUENCIES
from algoscope.planted.table import PLANTED
from algoscope.subjects.subject import Subject

CPU = torch.device("cpu")
MODELS: dict[str, Planted] = {name: PLANTED.load(name)() for name in PLANTED}
RIGHT = [name for name in MODELS if not name.endswith("-wrong")]
WITH_TASK = [name for name in RIGHT if MODELS[name].task is not None]


class Recorder(Tap):
    """Keeps what passes at the sites of some kinds."""

    def __init__(self, *kinds: str) -> None:
        self.kinds, self.seen = frozenset(kinds), {}

    def __call__(self, kind: str, layer: int | None, value: Tensor) -> Tensor:
        self.seen[kind, layer] = value
        return value


def recorded(planted: Planted, tokens: Tensor, kind: str, layer: int) -> Tensor:
    recorder = Recorder(kind)
    planted.model(tokens, tap=recorder)
    return recorder.seen[kind, layer]


def pattern(planted: Planted, role: str, tokens: Tensor) -> Tensor:
    """[batch query key] of the head with this role."""
    layer, head = planted.mechanism.heads[role]
    return recorded(planted, tokens, "pattern", layer)[:, head]


def repeats(planted: Planted, n: int, length: int, seed: int = 0) -> Tensor:
    """Rows of different tokens in random order, each row twice in a row."""
    order = torch.rand(n, len(planted.vocabulary), generator=seeded(CPU, seed)).argsort(dim=1)
    return order[:, :length].repeat(1, 2)


def examples(planted: Planted, n: int = 1000, seed: int = 0) -> tuple[Tensor, slice, Tensor]:
    """Inputs, the positions that are read, and the right tokens there."""
    if planted.task is not None:
        tokens = planted.task.sample(n, seeded(CPU, seed))
        return tokens[:, :-1], planted.task.answer_slice, tokens[:, planted.task.prompt_length :]
    tokens = repeats(planted, n, 20, seed)
    if planted.name.startswith("previous"):
        return tokens, slice(1, None), tokens[:, :-1]
    return tokens, slice(20, 39), tokens[:, 21:]


def share_of(planted: Planted, logits: Tensor, targets: Tensor) -> float:
    """The share of answers that are right: whole ones of a task; without a task each token is one."""
    right = logits.argmax(-1) == targets
    return float((right if planted.task is None else right.all(dim=1)).float().mean())


def right_share(planted: Planted, model: Transformer | None = None, seed: int = 0) -> float:
    tokens, read, targets = examples(planted, seed=seed)
    return share_of(planted, (planted.model if model is None else model)(tokens)[:, read], targets)


# ---------------------------------------------------------------------- the table


def test_listing_planted_models_loads_no_pytorch() -> None:
    code = "import sys; from algoscope.planted.table import PLANTED; print(len(PLANTED), 'torch' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.split() == [str(len(MODELS)), "False"]


@pytest.mark.parametrize("name", MODELS)
def test_what_the_table_says_is_what_the_model_says(name: str) -> None:
    planted = MODELS[name]
    assert (planted.name, planted.summary) == (name, PLANTED[name].summary)
    assert len(planted.vocabulary) == planted.model.cfg.d_vocab
    if planted.task is not None:
        assert planted.vocabulary == planted.task.vocabulary
        assert planted.model.cfg.n_ctx == planted.task.n_ctx
    layers, heads = planted.model.cfg.n_layers, planted.model.cfg.n_heads
    assert all(layer < layers and head < heads for layer, head in planted.mechanism.heads.values())


@pytest.mark.parametrize("name", MODELS)
def test_a_planted_model_is_the_same_each_time(name: str) -> None:
    again = PLANTED.load(name)().model.state_dict()
    assert all(torch.equal(tensor, again[key]) for key, tensor in MODELS[name].model.state_dict().items())


# ---------------------------------------------------------------------- answers, over whole domains


@pytest.mark.parametrize(
    ("name", "size", "margin"),
    [
        ("reversal", 8**5, 20.0),
        ("clock", 113**2, 48.2),  # 20 (5 - the largest sum of five cosines away from 0)
        ("pizza", 59**2, 12.34),  # 12.43 by the closed form; its eight directions cost a little
        pytest.param("carry-adder", 10**6, 20.0, marks=pytest.mark.long),  # a sample of it: below
    ],
)
def test_every_input_is_answered_right_by_a_margin_that_rounding_cannot_touch(
    name: str, size: int, margin: float
) -> None:
    planted = MODELS[name]
    verdict = ag.certify(Subject(name, planted.model, planted.task), progress=False)
    assert verdict["domain"] == {"size": size, "method": "exhaustive", "checked": size}
    assert verdict["wrong"] == 0
    assert verdict["robust"]
    assert verdict["min_margin"] == pytest.approx(margin, abs=0.01)
    assert verdict["dtype"] == "float32"


def test_the_carry_adder_is_right_in_every_class_by_its_margin() -> None:
    verdict = ag.certify("planted:carry-adder", sample=20_000, progress=False)
    assert (verdict["wrong"], verdict["robust"]) == (0, True)
    assert {row["class"] for row in verdict["by_class"] if row["checked"]} == {"S0", "S1", "S2", "S3"}
    assert verdict["min_margin"] == pytest.approx(20.0, abs=0.01)


def test_reversal_wrong_is_wrong_on_every_input_by_one_letter() -> None:
    planted = MODELS["reversal-wrong"]
    subject = Subject("reversal-wrong", planted.model, planted.task)
    assert ag.certify(subject, progress=False)["wrong"] == 8**5
    assert subject.generate("aaaah") == "abbbb<EOS>"
    tokens, read, targets = examples(planted)
    given_back = planted.model(tokens)[:, read].argmax(-1)
    assert torch.equal(given_back[:, :-1], (targets[:, :-1] + 1) % 8)


@given(st.lists(st.integers(0, 25), min_size=2, max_size=64))
def test_previous_token_names_the_token_before(row: list[int]) -> None:
    logits = MODELS["previous-token"].model(torch.tensor([row]))[0, 1:]
    best, second = logits.topk(2).values.unbind(-1)
    assert logits.argmax(-1).tolist() == row[:-1]
    assert float((best - second).min()) == pytest.approx(20)


@given(st.lists(st.integers(0, 25), min_size=2, max_size=64))
def test_induction_names_all_that_followed_the_current_token_in_equal_parts(row: list[int]) -> None:
    for name, sign in {"induction": 1, "induction-wrong": -1}.items():
        logits = MODELS[name].model(torch.tensor([row]))[0]
        for at, current in enumerate(row):
            followed = [row[j] for j in range(1, at + 1) if row[j - 1] == current]
            if followed:
                share = [followed.count(letter) / len(followed) for letter in range(26)]
                assert (sign * logits[at] / 20).tolist() == pytest.approx(share, abs=1e-5)


@pytest.mark.parametrize("length", [2, 5, 26])
def test_induction_continues_every_repeated_sequence_and_its_opposite_none(length: int) -> None:
    tokens = repeats(MODELS["induction"], 500, length)
    expected = tokens[:, :length].roll(-1, dims=1)
    said = MODELS["induction"].model(tokens)[:, length:]
    best, second = said.topk(2).values.unbind(-1)
    assert int((said.argmax(-1) != expected).sum()) == 0
    assert float((best - second).min()) == pytest.approx(20)
    wrong = MODELS["induction-wrong"].model(tokens)[:, length:].argmax(-1)
    assert int((wrong != expected).sum()) == 500 * length


def test_the_clock_s_logits_are_the_cosines_of_its_five_frequencies() -> None:
    planted = MODELS["clock"]
    assert planted.mechanism.frequencies == KEY_FREQUENCIES == (14, 35, 41, 42, 52)
    tokens = planted.task.at(torch.arange(113**2))
    logits = planted.model(tokens[:, :4])[:, 3, :113].reshape(113, 113, 113)
    n = torch.arange(113, dtype=torch.double)
    off = n[:, None, None] + n[None, :, None] - n
    expected = 20 * sum((2 * math.pi * k / 113 * off).cos() for k in KEY_FREQUENCIES)
    torch.testing.assert_close(logits.double(), expected, atol=1e-4, rtol=0)


def pizza_logits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The pizza's logits [a b c], and a, b, c."""
    planted = MODELS["pizza"]
    logits = planted.model(planted.task.at(torch.arange(59**2))[:, :2])[:, 1].reshape(59, 59, 59)
    n = torch.arange(59, dtype=torch.double)
    return logits.double(), n[:, None, None], n[None, :, None], n


def test_the_pizza_s_logits_are_lengths_along_eight_directions_and_its_accompanying_circles() -> None:
    logits, a, b, c = pizza_logits()
    expected = torch.zeros(59, 59, 59, dtype=torch.double)
    for k in FREQUENCIES:
        w = 2 * math.pi * k / 59
        for turn in (math.pi * j / DIRECTIONS for j in range(DIRECTIONS)):
            length = ((w * a - turn).cos() + (w * b - turn).cos()).abs()
            expected += 3 * math.pi / (4 * DIRECTIONS) * length * (2 * turn - w * c).cos()
        expected -= COMPENSATION * (w * (a - b)).cos() * (w * (a + b - c)).cos()
    torch.testing.assert_close(logits, 20 * expected, atol=1e-4, rtol=0)


def test_the_pizza_is_weak_where_its_operands_stand_across_from_each_other() -> None:
    logits, a, b, c = pizza_logits()
    assert MODELS["pizza"].mechanism.frequencies == FREQUENCIES == (1, 5, 17)
    assert MODELS["pizza"].mechanism.accompanying == (2, 10, 25)  # 34 and 25 are the same frequency
    closed = torch.zeros(59, 59, 59, dtype=torch.double)
    for k in FREQUENCIES:
        w = 2 * math.pi * k / 59
        strength = (w * (a - b) / 2).cos().abs() - COMPENSATION * (w * (a - b)).cos()
        closed += 20 * strength * (w * (a + b - c)).cos()
    assert float((logits - closed).pow(2).sum() / closed.pow(2).sum()) < 1e-3


def test_the_pizza_does_not_tell_its_operands_apart() -> None:
    planted = MODELS["pizza"]
    tokens = planted.task.at(torch.arange(59**2))[:, :2]
    assert float((pattern(planted, "both", tokens) - 0.5).abs().max()) == 0
    torch.testing.assert_close(planted.model(tokens)[:, 1], planted.model(tokens.flip(1))[:, 1], atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", ["clock", "pizza"])
def test_no_two_circles_are_of_one_size_so_that_principal_components_are_circles(name: str) -> None:
    planted = MODELS[name]
    p = planted.task.p
    numbers = planted.model.embed.weight[:p].double()
    points, size, _ = torch.linalg.svd(numbers - numbers.mean(dim=0), full_matrices=False)
    found = []
    for pair in range(0, int((size > 1e-4).sum()), 2):
        power = torch.fft.fft(points[:, pair : pair + 2], dim=0).abs().pow(2).sum(dim=1)[: p // 2 + 1]
        assert float(power.max() / power.sum()) > 1 - 1e-9
        found.append(int(power.argmax()))
    assert found == [*planted.mechanism.frequencies, *planted.mechanism.accompanying]


def test_the_carry_adder_s_neurons_are_the_carries() -> None:
    planted = MODELS["carry-adder"]
    tokens = planted.task.sample(2000, seeded(CPU, 5), 0.5)
    steps = [recorded(planted, tokens[:, :-1], "post", layer)[:, 7:11] for layer in range(2)]
    carry_in, carry_out = (post[..., 0] - post[..., 1] for post in steps)
    for row, came, went in zip(tokens.tolist(), carry_in.tolist(), carry_out.tolist(), strict=True):
        carries = [0]
        for a, b in zip(row[2::-1], row[6:3:-1], strict=True):
            carries.append((a + b + carries[-1]) // 10)
        assert came == carries
        assert went == [*carries[1:], 0]


# ---------------------------------------------------------------------- attention


@pytest.mark.parametrize("name", MODELS)
def test_heads_look_by_position_where_the_mechanism_says(name: str) -> None:
    planted = MODELS[name]
    tokens, _, _ = examples(planted, 50)
    for role, looks in planted.mechanism.looks.items():
        seen = pattern(planted, role, tokens)
        for query, keys in looks.items():
            if query < tokens.shape[1]:
                expected = torch.zeros(tokens.shape[1])
                expected[list(keys)] = 1 / len(keys)
                torch.testing.assert_close(seen[:, query], expected.expand(len(tokens), -1), atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", ["reversal", "reversal-wrong"])
def test_reversal_looks_along_the_anti_diagonal_whatever_the_letters(name: str) -> None:
    planted = MODELS[name]
    seen = pattern(planted, "reversal", planted.task.at(torch.arange(8**5))[:, :-1])
    for query in range(5, 10):
        assert float(seen[:, query, 9 - query].min()) > 1 - 1e-6
    assert torch.equal(seen, seen[:1].expand_as(seen))


@pytest.mark.parametrize("name", ["previous-token", "induction", "induction-wrong"])
def test_previous_token_heads_look_one_back(name: str) -> None:
    planted = MODELS[name]
    tokens = torch.randint(26, (100, 64), generator=seeded(CPU, 4))
    diagonal = pattern(planted, "previous", tokens).diagonal(offset=-1, dim1=1, dim2=2)
    assert float(diagonal.min()) > 1 - 1e-6


@pytest.mark.parametrize("name", ["induction", "induction-wrong"])
def test_induction_heads_look_after_the_earlier_occurrence(name: str) -> None:
    planted = MODELS[name]
    seen = pattern(planted, "induction", repeats(planted, 100, 20))
    stripe = seen.diagonal(offset=-19, dim1=1, dim2=2)[:, 1:]  # from the second copy to one after the first
    assert float(stripe.min()) > 1 - 1e-6


def test_clock_heads_look_at_the_two_numbers_for_every_pair() -> None:
    planted = MODELS["clock"]
    tokens = planted.task.at(torch.arange(113**2))[:, :4]
    for role, key in {"first": 0, "second": 2}.items():
        assert float(pattern(planted, role, tokens)[:, 3, key].min()) > 1 - 1e-6


def test_carry_adder_heads_look_at_a_column_and_at_the_one_below() -> None:
    planted = MODELS["carry-adder"]
    tokens = planted.task.sample(100, seeded(CPU, 6))[:, :-1]
    units, tens, hundreds = (2, 6), (1, 5), (0, 4)
    wanted = {"column": {7: units, 8: tens, 9: hundreds}, "below": {8: units, 9: tens, 10: hundreds}}
    for role, places in wanted.items():
        for query, keys in places.items():
            both = pattern(planted, role, tokens)[:, query, list(keys)]
            torch.testing.assert_close(both, torch.full_like(both, 0.5), atol=1e-6, rtol=0)


# ---------------------------------------------------------------------- components


def without_head(model: Transformer, layer: int, head: int) -> Transformer:
    model = copy.deepcopy(model)
    attn = model.blocks[layer].attn
    attn.o.weight[:, head * attn.d_head : (head + 1) * attn.d_head] = 0
    return model


def without_feed_forward(model: Transformer, layer: int) -> Transformer:
    model = copy.deepcopy(model)
    model.blocks[layer].mlp.w_out.weight.zero_()
    return model


@pytest.mark.parametrize("name", RIGHT)
def test_each_component_named_is_needed_and_every_other_is_idle(name: str) -> None:
    planted = MODELS[name]
    cfg, mechanism = planted.model.cfg, planted.mechanism
    tokens, _, _ = examples(planted, 200)
    whole = planted.model(tokens)
    assert right_share(planted) == 1
    for layer in range(cfg.n_layers):
        for head in range(cfg.n_heads):
            cut = without_head(planted.model, layer, head)
            if (layer, head) in mechanism.heads.values():
                # a third of the alphabet is a weak head's share
                assert right_share(planted, cut) < (0.7 if name == "induction-weak" else 0.25)
            else:
                assert torch.equal(cut(tokens), whole)
        if cfg.d_mlp is not None:
            assert layer in mechanism.feed_forwards
            assert right_share(planted, without_feed_forward(planted.model, layer)) < 0.25


def test_without_the_head_below_the_carry_adder_is_right_exactly_where_nothing_carries() -> None:
    planted = MODELS["carry-adder"]
    cut = without_head(planted.model, *planted.mechanism.heads["below"])
    tokens = planted.task.sample(5000, seeded(CPU, 8), 0.3)
    said = cut(tokens[:, :-1], at=planted.task.answer_slice).argmax(-1)
    is_right = (said == tokens[:, 8:]).all(dim=1)
    assert torch.equal(is_right, planted.task.class_of(tokens, "chain") == 0)
    assert 0 < int(is_right.sum()) < 5000


@pytest.mark.parametrize("name", MODELS)
def test_the_answer_is_readable_from_the_layer_said_and_not_before(name: str) -> None:
    planted = MODELS[name]
    tokens, read, targets = examples(planted)
    for layer in range(planted.model.cfg.n_layers):
        stream = recorded(planted, tokens, "resid_post", layer)[:, read]
        share = share_of(planted, stream @ planted.model.W_U.mT, targets)
        readable = planted.mechanism.readable_after is not None and layer >= planted.mechanism.readable_after
        assert share == 1 if readable else share < 0.25, (layer, share)


# ---------------------------------------------------------------------- shuffled


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("name", RIGHT)
def test_shuffled_weights_answer_next_to_nothing_right(name: str, seed: int) -> None:
    planted = MODELS[name]
    destroyed = shuffled(planted, seed)
    assert right_share(destroyed, seed=seed) < 0.1
    assert destroyed.mechanism.heads == {}
    assert destroyed.mechanism.readable_after is None
    for role, looks in planted.mechanism.looks.items():  # and none of its heads looks where one looked before
        tokens, _, _ = examples(planted, 100)
        seen = recorded(destroyed, tokens, "pattern", planted.mechanism.heads[role][0])
        there = [
            seen[:, :, query, list(keys)].sum(-1).mean(0) for query, keys in looks.items() if query < tokens.shape[1]
        ]
        assert float(torch.stack(there).mean(0).max()) < 0.5, role


@pytest.mark.parametrize("name", MODELS)
def test_shuffling_keeps_every_tensor_s_values_and_leaves_the_original_alone(name: str) -> None:
    planted = MODELS[name]
    before = copy.deepcopy(planted.model.state_dict())
    first, again, other = (shuffled(planted, seed).model.state_dict() for seed in (0, 0, 1))
    for key, tensor in before.items():
        assert torch.equal(planted.model.state_dict()[key], tensor)
        assert torch.equal(first[key].flatten().sort().values, tensor.flatten().sort().values)
        assert torch.equal(first[key], again[key])
    assert any(not torch.equal(first[key], before[key]) for key in before)
    assert any(not torch.equal(first[key], other[key]) for key in before)
