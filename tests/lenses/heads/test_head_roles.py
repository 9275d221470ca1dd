"""The roles lens: against slow loops, on heads whose role was set by hand, and on random ones that have none."""

import json
import math
from pathlib import Path
from string import ascii_lowercase

import numpy as np
import pytest
import torch
from torch import Tensor

import algoscope as ag
from algoscope.config import ModelConfig
from algoscope.core.errors import ConfigError, SubjectError, TaskMismatchError, UnknownNameError, VocabularyError
from algoscope.lenses.heads.head_roles import POINTED, ROLES, _targets, offsets_of, role_of, role_scores, roles
from algoscope.lenses.inputs.repeated_tokens import repeated_blocks
from algoscope.networks.build import build
from algoscope.planted.handwritten import SHARP, Stream, blank, fill, plant, plant_by_position
from algoscope.planted.models import shuffled
from algoscope.planted.table import PLANTED
from algoscope.subjects.huggingface import convert
from algoscope.subjects.planted import subject_of
from algoscope.subjects.subject import Subject
from algoscope.subjects.text import Letters, Numbers
from algoscope.tasks.digits.addition import Addition
from algoscope.tasks.strings.reversal import Reversal
from hf_models import CONFIGS, D_VOCAB, make

BOUNDS = {"pointed": 0.4, "uniform": 0.8, "sparse": 0.5}


def attention(n: int, causal: bool, seed: int = 0, batch: int = 3, heads: int = 2, sharpness: float = 2.0) -> Tensor:
    """Random attention [batch head query key] in float64."""
    draw = torch.Generator().manual_seed(seed)
    scores = sharpness * torch.randn(batch, heads, n, n, generator=draw, dtype=torch.double)
    return (scores.masked_fill(torch.ones(n, n).triu(1).bool(), -torch.inf) if causal else scores).softmax(-1)


def letters(n: int, k: int, seed: int = 0, batch: int = 3) -> Tensor:
    return torch.randint(k, (batch, n), generator=torch.Generator().manual_seed(seed))


# ---------------------------------------------------------------------- scores, slowly


def keys_of(role: str, row: list[int], q: int, visible: list[int]) -> list[int]:
    """The keys that a role points to, written down from its definition."""
    if role == "duplicate-token":
        return [k for k in visible if k != q and row[k] == row[q]]
    if role == "induction":
        return [k for k in visible if k >= 1 and row[k - 1] == row[q] and k - 1 != q]
    place = {"previous-token": q - 1, "current-token": q, "first-token": 0}.get(role)
    place = q - int(role.split()[1]) if place is None else place
    return [place] if place in visible else []


def slow_score(role: str, pattern: list[list[float]], row: list[int], causal: bool, queries: range) -> float:
    gain = room = 0.0
    for q in queries:
        visible = list(range(q + 1)) if causal else list(range(len(row)))
        keys = keys_of(role, row, q, visible)
        chance = len(keys) / len(visible)
        if 0 < chance < 1:
            gain += sum(pattern[q][k] for k in keys) - chance
            room += 1 - chance
    return gain / room if room else math.nan


def slow_shape(shape: str, pattern: list[list[float]], causal: bool, queries: range) -> float:
    each = []
    for q in queries:
        row = pattern[q][: q + 1] if causal else pattern[q]
        n = len(row)
        if n < 3:
            continue
        if shape == "uniform":
            each.append(1 - sum(abs(a - 1 / n) for a in row) / 2)
        else:
            each.append(1 + sum(a * math.log(a) for a in row if a > 0) / math.log(n))
    return sum(each) / len(each) if each else math.nan


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(("n", "k", "read"), [(9, 3, slice(None)), (12, 12, slice(5, 11)), (2, 2, slice(None))])
def test_scores_are_those_of_slow_loops(n: int, k: int, read: slice, causal: bool) -> None:
    pattern, tokens, offsets = attention(n, causal), letters(n, k), offsets_of(max(n, 8), causal)
    found = role_scores(pattern, tokens, causal, targets=_targets(offsets), read=read)
    queries = range(*read.indices(n))
    assert set(found) == {*POINTED, "uniform", "sparse"} - {"offset"} | {f"offset {offset}" for offset in offsets}
    for role, scores in found.items():
        shape = role in ("uniform", "sparse")
        expected = [
            [
                slow_shape(role, head, causal, queries) if shape else slow_score(role, head, row, causal, queries)
                for head in heads
            ]
            for heads, row in zip(pattern.tolist(), tokens.tolist(), strict=True)
        ]
        np.testing.assert_allclose(scores.numpy(), expected, atol=1e-12, err_msg=role)


@pytest.mark.parametrize("causal", [True, False])
def test_uniform_attention_scores_nothing_and_all_attention_there_scores_one(causal: bool) -> None:
    n, tokens = 12, letters(12, 4)
    ones = torch.ones(n, n, dtype=torch.double)
    visible = ones.tril() if causal else ones
    even = (visible / visible.sum(-1, keepdim=True)).expand(3, 1, n, n)
    offsets = offsets_of(n, causal)
    for role, scores in role_scores(even, tokens, causal, targets=_targets(offsets)).items():
        expected = torch.full_like(scores, float(role == "uniform"))
        torch.testing.assert_close(scores, expected, atol=1e-12, rtol=0)
    for role in (*POINTED[:3], "duplicate-token", "induction", *(f"offset {offset}" for offset in offsets)):
        pattern = even.clone()
        for b, row in enumerate(tokens.tolist()):
            for q in range(n):
                keys = keys_of(role, row, q, visible[q].nonzero()[:, 0].tolist())
                if keys:
                    pattern[b, 0, q] = 0
                    pattern[b, 0, q, keys] = 1 / len(keys)
        found = role_scores(pattern, tokens, causal, targets=_targets(offsets))[role]
        torch.testing.assert_close(found, torch.ones_like(found), atol=1e-12, rtol=0)


def test_a_head_that_rests_is_neither_sparse_nor_uniform() -> None:
    found = role_scores(torch.zeros(1, 1, 6, 6, dtype=torch.double), letters(6, 3, batch=1), True, targets=())
    assert float(found["sparse"]) == float(found["uniform"]) == 0
    half = 0.5 * torch.eye(6, dtype=torch.double).expand(1, 1, 6, 6)
    assert float(role_scores(half, letters(6, 3, batch=1), True, targets=())["sparse"]) == pytest.approx(0.5)


def test_offsets_are_those_that_half_the_positions_can_show() -> None:
    assert offsets_of(9, causal=True) == (2, 3, 4)
    assert offsets_of(3, causal=True) == ()
    assert offsets_of(6, causal=False) == (2, 3, -1, -2, -3)
    assert max(offsets_of(10_000, causal=True)) == 64


# ---------------------------------------------------------------------- naming


def named(**scores: float) -> str:
    return role_of(dict.fromkeys(ROLES, 0.0) | {key.replace("_", "-"): score for key, score in scores.items()}, BOUNDS)


def test_the_highest_role_that_points_is_named_from_the_threshold_on() -> None:
    assert named(induction=0.4, offset=0.38, uniform=0.9) == "induction"
    assert named(induction=0.399, uniform=0.8) == "uniform"
    assert named(induction=0.399, uniform=0.79, sparse=0.5) == "sparse"
    assert named(induction=0.399, uniform=0.79, sparse=0.49) == "unclear"


def test_a_tie_goes_to_the_role_that_holds_by_position() -> None:
    assert named(induction=1.0, offset=0.995) == "offset"
    assert named(induction=1.0, offset=0.98) == "induction"
    assert role_of(dict.fromkeys(ROLES), BOUNDS) == "unclear"


# ---------------------------------------------------------------------- planted heads


def found_in(subject: Subject | str, *inputs: str, **options) -> dict[str, dict]:
    return {head["name"]: head for head in roles(subject, inputs, **options)["heads"]}


def test_the_previous_token_head_is_named_and_its_idle_neighbour_is_not() -> None:
    heads = found_in("planted:previous-token")
    assert (heads["L0H1"]["role"], heads["L0H0"]["role"]) == ("previous-token", "uniform")
    assert heads["L0H1"]["score"] == pytest.approx(1, abs=1e-6)
    assert max(abs(heads["L0H0"]["scores"][role]) for role in POINTED) < 1e-6


def test_the_pair_of_induction_is_named_and_the_idle_heads_are_not() -> None:
    heads = found_in("planted:induction")
    assert {name: head["role"] for name, head in heads.items()} == {
        "L0H0": "uniform", "L0H1": "previous-token", "L1H0": "induction", "L1H1": "uniform",
    }  # fmt: skip
    induction = heads["L1H0"]
    assert induction["score"] == pytest.approx(1, abs=1e-6)
    assert induction["spread"]["induction"] == pytest.approx(0, abs=1e-6)
    assert induction["also"] == []
    assert max(induction["scores"][role] for role in POINTED if role != "induction") < 0.1


def one_head(looks: str) -> Subject:
    """Four heads; the second of them looks where it is said, the others are idle."""
    n, k = 64, len(ascii_lowercase)
    stream = Stream(letter=k, place=n)
    model = blank(stream, d_vocab=k, n_ctx=n, n_layers=1, n_heads=4, d_head=k + n, d_mlp=None)
    letter, place = stream.read("letter"), stream.read("place")
    fill(model, tokens=letter, places=place, unembedding=letter)
    out = torch.zeros(stream.size, 1)
    if looks == "duplicate-token":  # the same letter, less its own place
        both = torch.cat([letter, place])
        plant(model, (0, 1), query=SHARP * both, key=torch.cat([letter, -place]), value=letter[:1], out=out)
    else:
        where = {
            "current-token": {q: (q,) for q in range(n)},
            "first-token": dict.fromkeys(range(n), (0,)),
            "offset 3": {q: (q - 3,) for q in range(3, n)},
            "offset 5": {q: (q - 5,) for q in range(5, n)},
        }
        plant_by_position(model, stream, (0, 1), where[looks], value=letter[:1], out=out)
    return Subject(looks, model, text=Letters(ascii_lowercase))


@pytest.mark.parametrize("looks", ["current-token", "first-token", "offset 3", "duplicate-token"])
def test_every_other_role_is_found_where_it_was_planted(looks: str) -> None:
    heads = found_in(one_head(looks))
    role, *distance = looks.split()
    assert [head["role"] for head in heads.values()] == ["uniform", role, "uniform", "uniform"]
    assert heads["L0H1"]["score"] == pytest.approx(1, abs=1e-6)
    assert heads["L0H1"]["also"] == []
    if distance:
        assert heads["L0H1"]["offset"] == int(distance[0])


def test_one_repeated_text_cannot_tell_an_offset_from_induction_and_that_is_said() -> None:
    text = "qwerty" * 2  # the token after the last copy of this one stands 5 back
    by_place, by_content = (found_in(one, text) for one in (one_head("offset 5"), "planted:induction"))
    assert (by_place["L0H1"]["role"], by_place["L0H1"]["also"]) == ("offset", ["induction"])
    assert (by_content["L1H0"]["role"], by_content["L1H0"]["also"]) == ("induction", ["offset"])
    assert found_in(one_head("offset 5"))["L0H1"]["also"] == []


def test_clock_heads_look_at_the_first_token_and_the_previous_one_when_they_answer() -> None:
    answering = found_in("planted:clock", queries="answer")
    assert (answering["L0H0"]["role"], answering["L0H1"]["role"]) == ("first-token", "previous-token")
    everywhere = found_in("planted:clock")
    assert everywhere["L0H0"]["scores"]["first-token"] < 0.4, "elsewhere they look at all alike"
    assert everywhere["L0H0"]["scores"]["duplicate-token"] is None, "fewer than one input in twenty has a = b"


@pytest.mark.parametrize("name", ["reversal", "carry-adder"])
def test_heads_that_look_by_another_rule_are_sparse_where_they_answer(name: str) -> None:
    planted = PLANTED.load(name)()
    heads = found_in(f"planted:{name}", queries="answer")
    needed = {f"L{layer}H{head}" for layer, head in planted.mechanism.heads.values()}
    assert {head: found["role"] for head, found in heads.items()} == {
        head: "sparse" if head in needed else "uniform" for head in heads
    }


def test_a_head_that_looks_ahead_is_found_in_a_model_that_is_not_causal() -> None:
    task = Reversal()
    stream = Stream(letter=task.d_vocab, place=task.n_ctx)
    model = blank(
        stream, d_vocab=task.d_vocab, n_ctx=task.n_ctx, n_layers=1, n_heads=1, d_head=16, d_mlp=None, causal=False
    )
    fill(model, tokens=stream.read("letter"), places=stream.read("place"), unembedding=stream.read("letter"))
    ahead, nothing = {q: (q + 1,) for q in range(task.n_ctx - 2)}, torch.zeros(stream.size, 1)
    plant_by_position(model, stream, (0, 0), ahead, value=stream.read("letter")[:1], out=nothing)
    head = found_in(Subject("ahead", model, task))["L0H0"]
    assert (head["role"], head["offset"]) == ("offset", -1)
    assert head["score"] == pytest.approx(1, abs=1e-6)


# ---------------------------------------------------------------------- a target of one's own


def even_positions(tokens: Tensor) -> Tensor:
    """Every key at an even position."""
    n = tokens.shape[1]
    return (torch.arange(n) % 2 == 0).expand(n, n)


@pytest.mark.parametrize("causal", [True, False])
def test_share_and_score_of_a_target_are_those_of_slow_loops(causal: bool) -> None:
    pattern, tokens = attention(9, causal), letters(9, 3)
    target = ag.AttentionTarget("even", even_positions, queries=slice(4, None)).on(tokens)
    shares, scores = target.share(pattern), target.above_chance(pattern, causal)
    for b, heads in enumerate(pattern.tolist()):
        for h, rows in enumerate(heads):
            wanted = np.mean([sum(rows[q][0::2]) for q in range(4, 9)])
            assert float(shares[b, h]) == pytest.approx(wanted, abs=1e-12)
            gain = room = 0.0
            for q in range(4, 9):
                seen = range(q + 1) if causal else range(9)
                chance = len(seen[0::2]) / len(seen)
                gain, room = gain + sum(rows[q][k] for k in seen[0::2]) - chance, room + 1 - chance
            assert float(scores[b, h]) == pytest.approx(gain / room, abs=1e-12)
    torch.testing.assert_close(target.share_by_query(pattern)[:, :, 4:].mean(-1), shares)


def test_a_target_of_one_s_own_is_scored_and_named_like_the_others() -> None:
    def own(model: str, text: str, target: ag.AttentionTarget) -> dict:
        finding = roles(one_head(model), text, targets=[target])
        assert finding["scores"].axis("role").labels == (*POINTED, target.name, "uniform", "sparse")
        return next(head for head in finding["heads"] if head["name"] == "L0H1")

    like_the_first = ag.AttentionTarget("like the first", lambda x: (x == x[:, :1])[:, None].expand(-1, x.shape[1], -1))
    tied = own("first-token", "abcdefgh", like_the_first)
    assert (tied["role"], tied["also"]) == ("first-token", ["like the first"]), "a tie goes to the known role"
    odd = ag.AttentionTarget("odd", lambda x: ~even_positions(x), queries=slice(1, 2))
    assert own("current-token", "abcdefgh", odd)["scores"]["odd"] == pytest.approx(1, abs=1e-6)
    mirror = ag.AttentionTarget("mirror", lambda x: torch.eye(x.shape[1], dtype=torch.bool).flip(0).roll(-1, 1))
    heads = found_in("planted:reversal", queries="answer", targets=[mirror])
    assert [head["role"] for head in heads.values()] == ["mirror"], "sparse where the pattern is not known"


def test_a_target_that_cannot_be_scored_is_one_line() -> None:
    with pytest.raises(ConfigError, match="may not be called 'induction'"):
        roles("planted:induction", targets=[ag.AttentionTarget("induction", even_positions)])
    with pytest.raises(ConfigError, match=r"target 'mine' has the shape \[4, 4\].* 6 tokens: give a function"):
        roles("planted:induction", "abcabc", targets=[ag.AttentionTarget("mine", torch.ones(4, 4).bool())])


# ---------------------------------------------------------------------- nothing to find


@pytest.mark.long
@pytest.mark.parametrize("name", ["previous-token", "induction", "reversal", "carry-adder", "clock"])
def test_shuffled_weights_have_no_role_that_points(name: str) -> None:
    planted = PLANTED.load(name)()
    found = [
        head["role"]
        for seed in range(20)
        for head in found_in(subject_of(shuffled(planted, seed), "shuffled"), n_inputs=32).values()
    ]
    assert sum(role in POINTED for role in found) <= 0.025 * len(found), found  # 2 of 1,300 in 100 seeds of each


@pytest.mark.long
@pytest.mark.parametrize(
    "shape",
    [{}, {"positions": "rotary"}, {"positions": None}, {"normalization_type": None}, {"init_matrix_std": 0.3}],
    ids=lambda shape: " ".join(f"{key} {value}" for key, value in shape.items()) or "plain",
)
def test_random_models_have_no_role_that_points(shape: dict) -> None:
    free = ModelConfig(d_vocab=50, n_ctx=64, d_model=64, n_heads=4, init_embed_std=1.0, **shape)
    task = Addition(n_digits=3)
    asked = ModelConfig(d_vocab=14, n_ctx=task.n_ctx, d_model=64, n_heads=4, init_embed_std=1.0, **shape)
    subjects = [
        one
        for seed in range(6)
        for one in (
            Subject("free", build(free, seed), text=Numbers(50)),
            Subject("asked", build(asked, seed), task),
        )
    ]
    found = [head["role"] for subject in subjects for head in found_in(subject, n_inputs=32).values()]
    assert len(found) == 96
    assert not {*found} & {*POINTED}


# ---------------------------------------------------------------------- other libraries


@pytest.mark.parametrize("family", CONFIGS)
def test_scores_are_those_of_the_attention_that_transformers_gives(family: str) -> None:
    source = make(family)
    source.set_attn_implementation("eager")
    subject = Subject(family, convert(source), text=Numbers(D_VOCAB))
    text = "7 3 9 4 7 3 9 4 7 2 3"
    with torch.no_grad():
        theirs = source(subject.to_tokens(text), output_attentions=True).attentions
    found = roles(subject, [text])
    assert found["scores"].values.shape == (len(theirs), subject.cfg.n_heads, len(ROLES))
    row = [int(number) for number in text.split()]
    for head in found["heads"]:
        pattern = theirs[head["layer"]][0, head["head"]].double().tolist()
        for role in ("previous-token", "current-token", "first-token", "duplicate-token", "induction"):
            expected = slow_score(role, pattern, row, True, range(len(row)))
            assert head["scores"][role] == pytest.approx(expected, abs=1e-4), (head["name"], role)
        each = {k: slow_score(f"offset {k}", pattern, row, True, range(len(row))) for k in range(2, 6)}
        assert head["offset"] == max(each, key=each.get)
        assert head["scores"]["offset"] == pytest.approx(max(each.values()), abs=1e-4)


# ---------------------------------------------------------------------- inputs


class WithStart(Numbers):
    """A tokenizer that puts its token 3 before every text and ends with token 5."""

    def __init__(self, d_vocab: int) -> None:
        super().__init__(d_vocab)
        self.end_tokens = self.special = frozenset({5})

    def encode(self, text: str) -> list[int]:
        return [3, *super().encode(text)]


def test_random_rows_are_blocks_of_different_tokens_that_come_twice_in_different_lengths() -> None:
    cfg = ModelConfig(d_vocab=40, n_ctx=31, d_model=8, d_mlp=None)
    subject = Subject("started", build(cfg, 0), text=WithStart(40))
    batches = repeated_blocks(subject, 50, seed=1)
    lengths = [batch.shape[1] for batch in batches]
    assert sorted(lengths) == [1 + 2 * block for block in range(5, 16)]
    assert sum(map(len, batches)) == 50
    for batch in batches:
        block = (batch.shape[1] - 1) // 2
        assert set(batch[:, 0].tolist()) == {3}
        assert torch.equal(batch[:, 1 : 1 + block], batch[:, 1 + block :])
        assert all(len(set(row[1 : 1 + block])) == block for row in batch.tolist())
        assert not set(batch[:, 1:].flatten().tolist()) & {3, 5}
    again, other = repeated_blocks(subject, 50, seed=1), repeated_blocks(subject, 50, seed=2)
    assert all(torch.equal(one, two) for one, two in zip(batches, again, strict=True))
    assert [batch.tolist() for batch in other] != [batch.tolist() for batch in batches]
    assert [batch.shape[1] for batch in repeated_blocks(subject, 4, seed=0, n_lengths=1)] == [31]


def test_means_and_spreads_are_those_over_the_inputs_given() -> None:
    texts = ["abcabc", "aabbccdd", "hello" + "hello", "za"]
    subject = subject_of(shuffled(PLANTED.load("induction")(), 3), "shuffled")
    each = [found_in(subject, text)["L1H1"]["scores"] for text in texts]
    together = found_in(subject, *texts)["L1H1"]
    for role in ("previous-token", "current-token", "duplicate-token", "induction", "uniform", "sparse"):
        known = [scores[role] for scores in each if scores[role] is not None]
        assert together["scores"][role] == pytest.approx(np.mean(known))
        assert together["spread"][role] == pytest.approx(np.std(known))
    assert each[3]["duplicate-token"] is None
    assert together["offset"] is None, "the shortest text has two tokens"


def test_a_task_s_own_answers_are_read_with_its_inputs() -> None:
    texts = ["123+456", "999+1"]
    said = {"n": 2, "meaning": "2 given inputs", "tokens": [12, 12], "seed": 0, "texts": texts, "queries": "all"}
    assert roles("planted:carry-adder", texts)["inputs"] == said
    drawn = roles("planted:carry-adder")
    assert drawn["inputs"]["n"] == 256
    assert drawn["scores"].values.shape == (2, 2, len(ROLES))
    back = ag.Finding.from_json(drawn.to_json())
    np.testing.assert_allclose(back["scores"].values, drawn["scores"].values)


def test_one_text_may_be_given_without_a_list() -> None:
    one, listed = (roles("planted:induction", inputs) for inputs in ("abcabc", ["abcabc"]))
    assert one["inputs"]["texts"] == ["abcabc"]
    assert one.to_json() == listed.to_json()


def test_bad_input_is_one_line() -> None:
    with pytest.raises(UnknownNameError, match=r"queries of .* 'answers'.*did you mean 'answer'"):
        roles("planted:clock", queries="answers")
    with pytest.raises(TaskMismatchError, match="no task"):
        roles("planted:induction", queries="answer")
    with pytest.raises(ConfigError, match=r"n_inputs takes .* not 0"):
        roles("planted:clock", n_inputs=0)
    with pytest.raises(VocabularyError, match="'1'"):
        roles("planted:induction", ["a1"])
    tiny = Subject("tiny", build(ModelConfig(d_vocab=9, n_ctx=3, d_mlp=None), 0), text=Numbers(9))
    with pytest.raises(SubjectError, match=r"context of 3 .* give texts"):
        roles(tiny)


def test_roles_from_the_command_line(run, tmp_path: Path) -> None:
    out = tmp_path / "roles.html"
    code, said, err = run("lens", "roles", "planted:induction", "--n-inputs", 20, "--json", "--out", out)
    assert code == 0, err
    found = json.loads(said)
    assert found["claim"].endswith("1 previous-token (L0H1 1.00), 1 induction (L1H0 1.00), 2 uniform")
    assert found["thresholds"] == BOUNDS
    assert found["panels"][0]["axes"]["role"] == list(ROLES)
    assert out.is_file()
    _, said, _ = run("lens", "roles", "planted:induction", "--threshold", 1.5, "--input", "abab", "--json")
    assert {head["role"] for head in json.loads(said)["heads"]} <= {"uniform", "sparse", "unclear"}
    code, _, err = run("lens", "roles", "planted:induction", "--queries", "some")
    assert (code, err.count("\n")) == (2, 1)
