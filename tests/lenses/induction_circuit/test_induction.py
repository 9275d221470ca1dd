"""The induction lens: scores against slow loops, circuits against plain products, and a verdict that must be able to
say no: on heads that look and write the wrong thing, on one half of the pair, on shuffled and on random models.
"""

import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from string import ascii_lowercase

import numpy as np
import pytest
import torch
from torch import Tensor

import algoscope as ag
from algoscope.config import ModelConfig
from algoscope.core.errors import ConfigError, SubjectError
from algoscope.doors.report.report import render
from algoscope.lenses.induction_circuit import head_scores as scoring
from algoscope.lenses.induction_circuit.head_ablations import Losses, Replacements, nats_without, path_effects
from algoscope.lenses.induction_circuit.head_scores import attention_scores, chances, head_scores, raised, repeated_rows
from algoscope.lenses.induction_circuit.induction_heads import induction
from algoscope.lenses.induction_circuit.phase_change import induction_phase, shortest_window
from algoscope.lenses.interventions.replacements import KINDS
from algoscope.lenses.parameters.qk_ov_circuits import Circuits, Factors, composed, composition_by_chance
from algoscope.networks.build import build
from algoscope.networks.transformer import Transformer
from algoscope.planted.handwritten import SHARP, Stream, blank, fill, plant, plant_by_position
from algoscope.planted.models import LOGIT, READS, one_back, shuffled
from algoscope.planted.table import PLANTED
from algoscope.subjects.edits import Patch
from algoscope.subjects.huggingface import convert
from algoscope.subjects.planted import subject_of
from algoscope.subjects.subject import Subject
from algoscope.subjects.text import Letters, Numbers
from algoscope.tasks.strings.copying import Copying
from hf_models import CONFIGS, D_VOCAB, make

TASK = Copying()
SHAPE = ModelConfig(
    d_vocab=8, n_ctx=24, d_model=16, d_mlp=32, n_heads=2, n_layers=2, init_embed_std=1.0, init_matrix_std=0.5
)


def planted(name: str) -> Subject:
    return subject_of(PLANTED.load(name)(), f"planted:{name}")


def copier(seed: int = 0, dtype: torch.dtype = torch.float32, **fields: object) -> Subject:
    """A random model of the copying task, whose heads are sharp."""
    model = build(SHAPE.model_copy(update=fields), seed).to(dtype)
    return Subject("random", model, TASK)


# ---------------------------------------------------------------------- rows


def test_rows_repeat_a_block_of_different_tokens() -> None:
    rows = repeated_rows(planted("induction"), 5, length=7, seed=3)
    assert rows.tokens.shape == (5, 15)  # 14 are read, and one more is predicted
    for row in rows.tokens.tolist():
        assert len(set(row[:7])) == 7
        assert row == (row[:7] * 3)[:15]
    assert rows.determined.tolist() == [[place >= 7 for place in range(14)]] * 5


def test_rows_of_a_copying_task_have_the_lengths_of_its_patterns() -> None:
    rows = repeated_rows(copier(), 9)
    assert rows.tokens.shape == (9, 24)
    assert rows.period.tolist() == [3, 4, 5] * 3
    assert rows.trained
    for row, period, told in zip(rows.tokens.tolist(), rows.period.tolist(), rows.determined.tolist(), strict=True):
        assert len(set(row[:period])) == period
        assert TASK.prompt(TASK.decode(row)) + TASK.expected(TASK.decode(row)) == TASK.decode(row)
        assert told == [row[place] in row[:place] for place in range(23)]
    assert not repeated_rows(copier(), 4, length=7).trained


def test_a_tokenizer_s_start_stands_before_the_blocks_and_in_none() -> None:
    subject = Subject(
        "letters", build(SHAPE.model_copy(update={"d_vocab": 26, "n_ctx": 30}), 0), text=Letters(ascii_lowercase)
    )
    rows = repeated_rows(subject, 6, length=4, copies=3, first="xy")
    assert rows.start == 2
    assert rows.tokens.shape == (6, 2 + 12 + 1)
    for row in rows.tokens.tolist():
        assert row[:2] == [23, 24]
        assert not {23, 24} & set(row[2:])
    assert rows.determined.sum(dim=1).tolist() == [8] * 6


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"n_inputs": 1}, ConfigError, ["2 inputs", "not 1"]),
        ({"length": 27}, ConfigError, ["27 tokens", "from 2 to 26"]),
        ({"length": 1}, ConfigError, ["1 token", "from 2 to 26"]),
        ({"length": 0}, ConfigError, ["length takes", "not 0"]),
        ({"copies": 1}, ConfigError, ["1 copies"]),
        ({"copies": 0}, ConfigError, ["copies takes", "not 0"]),
        ({"copies": 40}, SubjectError, ["64 tokens", "block of two"]),
        ({"first": "a" * 61}, SubjectError, ["3 tokens", "block of two"]),
    ],
)
def test_rows_that_cannot_be_made_are_refused(options: dict, error: type[Exception], words: list[str]) -> None:
    with pytest.raises(error) as raised_error:
        induction(planted("induction"), **options)
    assert all(word in str(raised_error.value) for word in words), raised_error.value
    assert "\n" not in str(raised_error.value)


def test_a_model_that_sees_the_answer_is_refused() -> None:
    with pytest.raises(SubjectError, match="not causal"):
        induction(copier(causal=False))


# ---------------------------------------------------------------------- scores, slowly


def slow_scores(pattern: list[list[float]], row: list[int], start: int, period: int) -> dict[str, float]:
    """The definitions, one query at a time."""
    n = len(row)
    told = range(start + period, n)
    keys = {
        "induction": [(q, [k for k in range(1, q + 1) if row[k - 1] == row[q] and k - 1 < q]) for q in told],
        "diagonal": [(q, [q - period + 1]) for q in range(period - 1, n)],
        "previous-token": [(q, [q - 1]) for q in range(1, n)],
        "duplicate-token": [(q, [k for k in range(q) if row[k] == row[q]]) for q in told],
        "current-token": [(q, [q]) for q in range(n)],
        "first-token": [(q, [0]) for q in range(n)],
    }
    return {name: sum(pattern[q][k] for q, there in at for k in there) / len(at) for name, at in keys.items()}


@pytest.mark.parametrize("first", ["", "z"])
def test_scores_are_those_of_slow_loops(first: str) -> None:
    rows = repeated_rows(planted("induction"), 3, length=5, copies=3, first=first)
    n = rows.read.shape[1]
    draw = torch.Generator().manual_seed(0)
    scores = 2 * torch.randn(3, 2, n, n, generator=draw, dtype=torch.double)
    pattern = scores.masked_fill(torch.ones(n, n).triu(1).bool(), -torch.inf).softmax(dim=-1)
    found = attention_scores(pattern, rows)
    for i, row in enumerate(rows.read.tolist()):
        for head in range(2):
            for name, value in slow_scores(pattern[i, head].tolist(), row, rows.start, 5).items():
                assert float(found[name][i, head]) == pytest.approx(value, abs=1e-12), name


@pytest.mark.parametrize(("first", "entries"), [("", 11), ("z", 12)])
def test_a_perfect_head_scores_one_and_on_the_raw_diagonal_less(first: str, entries: int) -> None:
    """T = 10 tokens twice: of T + 1 entries of the diagonal (T + 2 after a first token) T can be right."""
    rows = repeated_rows(planted("induction"), 4, length=10, first=first)
    n, start = rows.read.shape[1], rows.start
    assert n == 20 + start
    pattern = torch.zeros(4, 1, n, n)
    for q in range(n):
        pattern[:, :, q, q - 9 if q >= start + 10 else q] = 1
    scores = attention_scores(pattern, rows)
    assert scores["induction"].tolist() == [[1.0]] * 4
    assert scores["diagonal"].flatten().tolist() == pytest.approx([10 / entries] * 4)


def test_even_attention_scores_what_is_called_chance() -> None:
    subject = copier(n_layers=1)
    model = subject.model
    model.block(0).attn.q.weight.zero_()
    rows = repeated_rows(subject, 12)
    found = head_scores(subject, Circuits(subject), rows)[0].attention
    assert found == pytest.approx(chances(rows), abs=1e-6)


def test_portions_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    subject = copier(dtype=torch.double)
    whole = induction(subject, n_inputs=9).facts
    monkeypatch.setattr(scoring, "PORTION", 4 * 23 * 23 * 4)
    assert len(list(scoring.portions(subject, repeated_rows(subject, 9)))) == 3
    parted = induction(subject, n_inputs=9).facts
    assert parted["mechanism"] == whole["mechanism"]
    for key in ("losses", "heads", "heard", "ablations"):
        flat, expected = (numbers(facts[key]) for facts in (parted, whole))
        assert flat == pytest.approx(expected, abs=1e-10)


def numbers(value: object) -> list[float]:
    """Every number within JSON values, in order."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        return [number for item in value for number in numbers(item)]
    return [float(value)] if isinstance(value, int | float) else []


def test_copying_is_the_share_of_what_is_raised() -> None:
    rows = repeated_rows(planted("induction"), 3, length=6)
    draw = torch.Generator().manual_seed(1)
    v, out, words = (torch.randn(*shape, generator=draw) for shape in ((3, 12, 2, 4), (2, 4, 9), (26, 9)))
    itself, every = raised(v, out, words, rows)
    for head in range(2):
        own = total = 0.0
        for i, row in enumerate(rows.read.tolist()):
            for place, token in enumerate(row):
                logits = (v[i, place, head] @ out[head] @ words.T).tolist()
                mean = sum(logits) / 26
                own += max(0.0, logits[token] - mean)
                total += sum(max(0.0, logit - mean) for logit in logits)
        assert float(itself[head]) == pytest.approx(own, rel=1e-4)
        assert float(every[head]) == pytest.approx(total, rel=1e-4)


# ---------------------------------------------------------------------- circuits, plainly


@pytest.mark.parametrize(("d_model", "d_head"), [(24, 5), (9, 12)])
def test_composition_is_that_of_the_plain_products(d_model: int, d_head: int) -> None:
    draw = torch.Generator().manual_seed(2)
    first, second = (Factors(*torch.randn(4, 3, d_model, d_head, generator=draw, dtype=torch.double)) for _ in range(2))
    found = dict(zip("QKV", composed(first, second), strict=True))
    for i in range(3):
        for j in range(3):
            ov, other_ov = (heads.W_V[h] @ heads.W_O[h].T for heads, h in ((first, i), (second, j)))
            qk = second.W_Q[j] @ second.W_K[j].T
            plain = {"Q": (ov @ qk, qk), "K": (ov @ qk.T, qk), "V": (ov @ other_ov, other_ov)}
            for kind, (product, reads) in plain.items():
                expected = product.norm() / (ov.norm() * reads.norm())
                assert float(found[kind][i, j]) == pytest.approx(float(expected), abs=1e-10)


def plain_weights(model: Transformer, layer: int, head: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    attn = model.block(layer).attn
    rows = slice(head * attn.d_head, (head + 1) * attn.d_head)
    return attn.q.weight[rows].T, attn.k.weight[rows].T, attn.v.weight[rows].T, attn.o.weight[:, rows].T


@pytest.mark.parametrize("normalization_type", ["LN", "RMS", None])
def test_circuits_of_a_model_are_the_plain_products_of_its_folded_weights(normalization_type: str | None) -> None:
    subject = copier(dtype=torch.double, normalization_type=normalization_type)
    with torch.no_grad():
        for name, weight in subject.model.named_parameters():
            if "ln" in name:
                weight.add_(
                    0.3 * torch.randn(weight.shape, dtype=torch.double, generator=torch.Generator().manual_seed(1))
                )
    circuits = Circuits(subject)
    model = subject.folded()[0].model
    embedding = model.embed.weight
    if normalization_type:
        embedding = embedding / (embedding.pow(2).mean(dim=1, keepdim=True) + model.cfg.eps).sqrt()
    for head in range(2):
        w_q, w_k, w_v, w_o = plain_weights(model, 1, head)
        ov = embedding @ w_v @ w_o @ model.W_U.T
        torch.testing.assert_close(circuits.ov(1, head), ov, atol=1e-10, rtol=0)
        values = torch.linalg.eigvals(ov)
        expected = float(values.real.sum() / values.abs().sum())
        assert float(circuits.copying_eigenvalues(1)[head]) == pytest.approx(expected, abs=1e-6)
        assert float(circuits.copying_top1(1)[head]) == float((ov.argmax(1) == torch.arange(8)).double().mean())
        _, _, v0, o0 = plain_weights(model, 0, 1)
        match = (embedding @ w_q) @ (embedding @ v0 @ o0 @ w_k).T
        torch.testing.assert_close(circuits.matching((0, 1), (1, head)), match, atol=1e-10, rtol=0)
        place = model.pos_embed.weight[:23]
        point = (place @ v0 @ o0 @ w_q) @ (place @ w_k).T
        torch.testing.assert_close(circuits.pointing((0, 1), (1, head), 23), point, atol=1e-10, rtol=0)
        score = circuits.composition()[1, 1, 2 + head]
        qk, first = w_q @ w_k.T, v0 @ o0
        assert score == pytest.approx(float((first @ qk.T).norm() / (first.norm() * qk.norm())), abs=1e-10)


def test_only_later_heads_compose() -> None:
    scores = Circuits(copier(n_layers=3)).composition()
    assert scores.shape == (3, 6, 6)
    layer = np.arange(6) // 2
    assert (np.isnan(scores) == np.broadcast_to(layer[:, None] >= layer, scores.shape)).all()


def test_chance_is_that_of_random_heads() -> None:
    """Heads of random models compose by chance, and those of the planted pair far above it."""
    mean, deviation = composition_by_chance(64, 8)
    subject = Subject("random", build(ModelConfig(**SHAPE.model_dump() | {"d_model": 64, "n_heads": 8}), 5), TASK)
    scores = Circuits(subject).composition()
    assert np.nanmean(scores) == pytest.approx(mean, abs=3 * deviation / math.sqrt(64))
    assert induction(planted("induction"), n_inputs=8)["pair"]["above_chance"] > 5


def test_a_large_vocabulary_is_looked_at_in_part() -> None:
    cfg = ModelConfig(d_vocab=2000, n_ctx=40, d_model=8, d_mlp=None, n_heads=2)
    subject = Subject("large", build(cfg, 0), text=Numbers(2000))
    circuits = Circuits(subject)
    assert len(circuits.tokens) == len(set(circuits.tokens.tolist())) == 1024
    assert circuits.ov(1, 0).shape == (1024, 1024)
    assert induction(subject, n_inputs=4, length=12)["mechanism"] == "none"


# ---------------------------------------------------------------------- causes


@pytest.mark.parametrize("kind", KINDS)
def test_runs_without_heads_are_those_of_plain_edits(kind: str) -> None:
    subject = copier(dtype=torch.double)
    rows = repeated_rows(subject, 6)
    given = Replacements.recorded(subject, rows, seed=4)
    groups = {"none": [], "one": [(0, 1)], "two": [(0, 0), (1, 1)]}
    nats = nats_without(subject, rows, given, groups, kind)
    _, cache = subject.run(rows.read, record=[("z", 0), ("z", 1)])

    def instead(layer: int) -> Tensor:
        z = cache["z", layer]
        if kind == "resample":
            given_rows = [torch.unique(given.edit((layer, 0), kind, slice(i, i + 1)).value.flatten()) for i in range(6)]
            own = [torch.unique(z[i].flatten()) for i in range(6)]
            order = [next(j for j in range(6) if torch.equal(one, own[j])) for one in given_rows]
            assert all(i != j for i, j in enumerate(order))
            return z[order]
        others = torch.stack([z[[j for j in range(6) if j != i]].mean(dim=0) for i in range(6)])
        return torch.zeros_like(z) if kind == "zero" else others

    for name, group in groups.items():
        edits = [Patch(("z", layer), value=instead(layer), head=head) for layer, head in group]
        logits, _ = subject.run(rows.read, edits=edits)
        plain = torch.nn.functional.cross_entropy(logits.mT, rows.tokens[:, 1:], reduction="none")
        torch.testing.assert_close(nats[name], plain, atol=1e-10, rtol=0)


def test_what_is_heard_is_that_of_two_plain_runs() -> None:
    subject = copier(dtype=torch.double)
    rows = repeated_rows(subject, 6)
    given = Replacements.recorded(subject, rows, seed=0)
    groups = [((0, 0),), ((0, 1),), ((0, 0), (0, 1))]
    found = {(one.senders, one.entry): one for one in path_effects(subject, rows, given, [(1, 0)], groups, "mean")}
    assert set(found) == {(group, entry) for group in groups for entry in "qk"}
    mean = torch.stack([given.z[0][[j for j in range(6) if j != i]].mean(dim=0) for i in range(6)])
    for (senders, entry), one in found.items():
        edits = [Patch(("z", 0), value=mean, head=head) for _, head in senders]
        _, deaf = subject.run(rows.read, record=[(entry, 1)], edits=edits)
        edit = Patch((entry, 1), value=deaf[entry, 1], head=0)
        _, after = subject.run(rows.read, record=[("pattern", 1)], edits=[edit])
        assert one.attention == pytest.approx(
            float(attention_scores(after["pattern", 1], rows)["induction"][:, 0].mean())
        )


@pytest.mark.parametrize(
    ("losses", "later", "share"),
    [
        (Losses(2.0, 0.5, math.log(100)), 2.0, 1),
        (Losses(2.0, 0.5, math.log(100)), 0.5, 0),
        (Losses(2.0, 0.5, math.log(100)), 1.25, 0.5),
        (Losses(2.0, 0.5, math.log(100)), 0.1, 0),  # better without: nothing is lost
        (Losses(20.0, 0.0, math.log(26)), math.log(26), 1),  # a model that is wrong where it cannot know
        (Losses(20.0, 0.0, math.log(26)), 9.0, 1),  # no more than all can be lost
        (Losses(2.0, 3.0, math.log(26)), 0.0, None),  # no gain
        (Losses(12.0, 3.2, math.log(26)), 9.0, None),  # hardly better than a guess
        (Losses(2.0, 1.7, math.log(26), error=0.2), 2.0, None),  # within noise
    ],
)
def test_the_share_lost_is_between_0_and_1_of_a_gain_above_noise(
    losses: Losses, later: float, share: float | None
) -> None:
    assert losses.share_lost(Losses(losses.first, later)) == (share if share is None else pytest.approx(share))


def test_a_gain_counts_from_a_guess_among_all_tokens_and_not_among_those_of_a_block() -> None:
    """A vocabulary of 2,000 and blocks of three: a loss of 4 nats is a gain, though a block has only ln 3 to guess."""
    subject = Subject("large", build(ModelConfig(d_vocab=2000, n_ctx=40, d_model=8, d_mlp=None), 0), text=Numbers(2000))
    rows = repeated_rows(subject, 4, length=3)
    assert rows.candidates.shape == (4, 3)
    nats = torch.full(rows.read.shape, 9.0, dtype=torch.double)
    nats[rows.determined] = 4.0
    baseline = Losses.of(nats, rows)
    assert baseline.baseline == pytest.approx(math.log(2000))
    assert baseline.share_lost(Losses(9.0, 6.0)) == pytest.approx(2 / (math.log(2000) - 4))


# ---------------------------------------------------------------------- the verdict


def test_the_planted_pair_is_found() -> None:
    found = induction(planted("induction"), n_inputs=16)
    pair, heads = found["pair"], {head["name"]: head for head in found["heads"]}
    assert found["mechanism"] == "induction pair"
    assert (pair["induction"], pair["earlier"], pair["entry"], pair["role"]) == ("L1H0", "L0H1", "k", "previous-token")
    assert pair["matching"] == 1
    assert heads["L1H0"]["induction"] == pytest.approx(1, abs=1e-4)
    assert heads["L1H0"]["copying"] == heads["L1H0"]["top1"] == 1
    assert heads["L1H0"]["eigenvalues"] == pytest.approx(1)
    assert heads["L0H1"]["previous-token"] == pytest.approx(1, abs=1e-4)
    assert heads["L0H0"]["copying"] is None  # it writes nothing
    assert found["losses"]["gain"] > 3
    assert all(rule["holds"] for rule in found["evidence"].values())
    lost = {(row["without"], row["kind"]): row["later_increase"] for row in found["ablations"]}
    for kind in KINDS:
        assert lost["L0H0", kind] == lost["L1H1", kind] == 0
        assert min(lost["L0H1", kind], lost["L1H0", kind]) > 2
    left = {(row["sender"], row["entry"]): row["induction"] for row in found["heard"]}
    assert left.pop(("L0H1", "k")) < 0.1
    assert min(left.values()) > 0.99
    best = found["composition"]["largest"][0]
    assert (best["entry"], best["sender"], best["receiver"]) == ("K", "L0H1", "L1H0")


@pytest.mark.parametrize("options", [{"first": "z"}, {"copies": 3, "length": 8}, {"length": 5, "seed": 7}])
def test_the_planted_pair_is_found_in_other_rows(options: dict) -> None:
    assert induction(planted("induction"), n_inputs=8, **options)["mechanism"] == "induction pair"


def test_a_head_that_looks_there_and_writes_the_wrong_thing_is_no_pair() -> None:
    found = induction(planted("induction-wrong"), n_inputs=16)
    assert found["mechanism"] == "induction-like attention only"
    holds = {rule: outcome["holds"] for rule, outcome in found["evidence"].items()}
    assert (holds["looks"], holds["hears"], holds["gains"]) == (True, True, False)
    assert next(head for head in found["heads"] if head["name"] == "L1H0")["copying"] == -1


@pytest.mark.parametrize("n_inputs", [4, 16])
def test_a_pair_of_weak_heads_is_found_by_its_causes(n_inputs: int) -> None:
    """No head reaches the threshold, and no path from a single head matters much."""
    found = induction(planted("induction-weak"), n_inputs=n_inputs)
    scores = {head["name"]: head for head in found["heads"]}
    assert max(head["induction"] for head in scores.values()) < 0.4
    assert max(head["previous-token"] for head in scores.values()) < 0.4
    assert found["mechanism"] == "induction pair"
    assert found["pair"]["earlier_heads"] == ["L0H0", "L0H1", "L0H2"]
    assert found["pair"]["induction_heads"] == ["L1H0", "L1H1", "L1H2"]
    heard = {row["sender"]: row for row in found["heard"] if row["entry"] == "k"}
    alone = [heard[f"L0H{head}"]["induction"] for head in range(4)]
    together = next(row["induction"] for name, row in heard.items() if name.count("+") == 2)
    assert min(alone) > 0.5 * scores["L1H0"]["induction"]
    assert together < 0.1
    assert "L1H0, L1H1 and L1H2 attend" in found.claim
    assert "heads L0H0, L0H1 and L0H2" in found.claim


@pytest.mark.parametrize("name", ["induction", "induction-weak", "induction-wrong"])
@pytest.mark.parametrize("options", [{}, {"length": 3}, {"length": 2, "copies": 20}, {"first": "z", "length": 12}])
def test_no_share_leaves_0_to_1(name: str, options: dict) -> None:
    found = induction(planted(name), n_inputs=6, **options)
    shares = [found["evidence"][rule]["value"] for rule in ("hears", "needs induction heads", "needs earlier heads")]
    if found["pair"]:
        shares += [found["pair"]["share_lost"], *numbers(found["pair"]["gain_lost"])]
    assert all(share is None or 0 <= share <= 1 for share in shares)
    for share in (float(percent) for percent in re.findall(r"(-?[\d.]+)\u2009?%", found.claim)):
        assert 0 <= share <= 100


def test_a_model_without_a_gain_has_no_share_to_lose() -> None:
    found = induction(planted("induction-wrong"), n_inputs=8)
    assert found["evidence"]["needs induction heads"] == {"holds": False, "value": None}
    assert [row[2] for row in found.tables[0].rows if row[0].startswith("needs")] == ["cannot be told"] * 2


def test_one_half_of_the_pair_is_none() -> None:
    found = induction(planted("previous-token"), n_inputs=8)
    assert found["mechanism"] == "none"
    assert found["pair"] is None
    assert found["heard"] == []


def by_offset(back: int) -> Subject:
    """A head beyond the first layer that looks a fixed distance back, whatever stands there, and copies; before it, a
    previous-token head that it does not hear.
    """
    stream = Stream(letter=26, place=READS, before=26, copied=26)
    model = blank(stream, d_vocab=26, n_ctx=READS, n_layers=2, n_heads=2, d_head=READS, d_mlp=None)
    letter = stream.read("letter")
    fill(model, tokens=letter, places=stream.read("place"), unembedding=LOGIT * stream.read("copied"))
    plant_by_position(model, stream, (0, 1), one_back(READS), value=letter, out=stream.write("before"))
    looks = {query: (query - back,) for query in range(back, READS)}
    plant_by_position(model, stream, (1, 0), looks, value=letter, out=stream.write("copied"))
    return Subject("offset", model, text=Letters(ascii_lowercase))


def test_a_head_that_goes_by_distance_is_no_pair() -> None:
    """With blocks of one length it attends to the right token, and its keys read no head."""
    found = induction(by_offset(9), n_inputs=8, length=10)
    assert next(head for head in found["heads"] if head["name"] == "L1H0")["induction"] > 0.99
    assert found["losses"]["gain"] > 3
    assert found["mechanism"] == "induction-like attention only"
    assert not found["evidence"]["hears"]["holds"]


def pointer() -> Subject:
    """The other way: a head finds where the same token stood and writes that place; a head of the next layer looks at
    the place after it, and copies.
    """
    stream = Stream(letter=26, place=READS, found=READS, copied=26)
    model = blank(stream, d_vocab=26, n_ctx=READS, n_layers=2, n_heads=2, d_head=26 + READS, d_mlp=None)
    letter, place = stream.read("letter"), stream.read("place")
    fill(model, tokens=letter, places=place, unembedding=LOGIT * stream.read("copied"))
    # the same letter, and of these an earlier place rather than its own
    rank = torch.linspace(1, 0, READS)[None] @ place
    query = torch.cat([4 * SHARP * letter, READS * SHARP * place.sum(dim=0, keepdim=True)])
    plant(model, (0, 0), query=query, key=torch.cat([READS * letter, rank]), value=place, out=stream.write("found"))
    after = stream.read("found").roll(1, dims=0)  # unit m reads place m - 1
    plant(model, (1, 1), query=SHARP * after, key=place, value=letter, out=stream.write("copied"))
    return Subject("pointer", model, text=Letters(ascii_lowercase))


def test_a_pointer_pair_is_told_from_an_induction_pair() -> None:
    found = induction(pointer(), n_inputs=12)
    pair = found["pair"]
    assert found["mechanism"] == "pointer pair"
    assert (pair["induction"], pair["earlier"], pair["entry"], pair["role"]) == ("L1H1", "L0H0", "q", "duplicate-token")
    assert pair["pointing"] == 1
    assert "position circuit" in [panel.name for panel in found.panels]


@pytest.mark.parametrize("name", ["induction", "previous-token"])
def test_shuffled_models_have_none(name: str) -> None:
    for seed in range(3):
        subject = subject_of(shuffled(PLANTED.load(name)(), seed), "shuffled")
        assert induction(subject, n_inputs=8)["mechanism"] == "none"


def test_random_models_have_none() -> None:
    for seed in range(4):
        model = PLANTED.load("induction")().model
        cfg = model.cfg.model_copy(update={"init_embed_std": 1.0, "init_matrix_std": 0.5})
        letters = Subject("random", build(cfg, seed), text=Letters(ascii_lowercase))
        for subject in (letters, copier(seed)):
            assert induction(subject, n_inputs=8)["mechanism"] == "none"


def test_a_random_head_that_is_made_to_look_is_still_no_pair() -> None:
    found = induction(copier(3), n_inputs=12, threshold=0.1)
    assert found["mechanism"] == "induction-like attention only"


@pytest.mark.parametrize("family", ["gpt2", "llama", "pythia", "qwen3"])
def test_models_of_hugging_face(family: str) -> None:
    """Grouped heads, rotary positions, norms on queries and keys, parallel blocks."""
    subject = Subject(family, convert(make(family)), text=Numbers(CONFIGS[family].vocab_size))
    found = induction(subject, n_inputs=4, length=20)
    assert len(found["heads"]) == subject.cfg.n_layers * subject.cfg.n_heads
    assert found["mechanism"] == "none"
    assert found["inputs"]["candidates"] == D_VOCAB
    json.loads(found.to_json())


def test_of_many_heads_only_some_are_taken_away() -> None:
    fields = {"n_layers": 3, "n_heads": 16, "d_head": 2}
    found = induction(copier(**fields), n_inputs=4)
    assert len(found["heads"]) == 48
    assert {row["without"] for row in found["ablations"]} >= {found["receiver"]}
    assert len(found["ablations"]) < 48
    assert len({row["sender"] for row in found["heard"]}) in (8, 16)


def test_one_layer_has_no_pair() -> None:
    found = induction(copier(n_layers=1), n_inputs=6)
    assert found["pair"] is None
    assert found["composition"]["largest"] == []
    assert not {"heard", "composition"} & {panel.name for panel in found.panels}


def test_a_copying_task_has_its_floor_and_other_lengths() -> None:
    subject = copier()
    found = induction(subject, n_inputs=9)
    rows = repeated_rows(subject, 9)
    floor = Losses.of(TASK.surprisal(rows.tokens), rows)
    assert found["losses"]["floor"] == {"first": pytest.approx(floor.first), "later": pytest.approx(floor.later)}
    assert [(row["length"], row["trained"]) for row in found["by_length"]] == [
        (2, False), (3, True), (4, True), (5, True), (6, False), (7, False),
    ]  # fmt: skip
    assert induction(subject, n_inputs=4, length=7)["losses"]["floor"] is None


def test_the_finding_draws_and_goes_to_json(tmp_path: Path) -> None:
    found = induction(planted("induction"), n_inputs=6)
    names = [panel.name for panel in found.panels]
    assert {"attention", "writing", "loss by position", "heard", "composition", "QK circuit", "OV circuit"} <= set(
        names
    )
    again = ag.Finding.from_json(found.to_json())
    assert again["mechanism"] == "induction pair"
    found.save(tmp_path / "found.html")


def test_the_command_reads_its_options(run) -> None:
    code, out, _ = run("lens", "induction", "planted:induction", "--length", 6, "--n-inputs", 6, "--json")
    found = json.loads(out)
    assert code == 0
    assert found["mechanism"] == "induction pair"
    assert found["inputs"]["lengths"] == [6]


# ---------------------------------------------------------------------- over the checkpoints


@pytest.mark.parametrize(
    ("loss", "share", "expected"),
    [
        ([4, 4, 4, 0, 0], 0.8, (20, 30)),
        ([4, 3, 2, 1, 0], 0.5, (0, 20)),
        ([0, 4, 3.5, 1.5, 0.5], 0.8, (10, 40)),
        ([1, 1, 1, 1, 1], 0.8, None),
        ([0, 1, 2, 3, 4], 0.8, None),
    ],
)
def test_the_shortest_window_of_a_fall(loss: Sequence[float], share: float, expected: tuple[int, int] | None) -> None:
    assert shortest_window(np.arange(5) * 10, np.array(loss, dtype=float), share) == expected


def test_the_shortest_window_is_that_of_a_slow_search() -> None:
    draw = np.random.default_rng(0)
    for _ in range(50):
        steps, loss = np.sort(draw.choice(100, 12, replace=False)), draw.normal(size=12)
        falls = [
            steps[j] - steps[i]
            for i in range(12)
            for j in range(i + 1, 12)
            if loss[i] - loss[j] >= 0.6 * (loss.max() - loss.min())
        ]
        found = shortest_window(steps, loss, 0.6)
        assert (found is None) == (not falls)
        assert found is None or found[1] - found[0] == min(falls)


@pytest.fixture(scope="module")
def copying_run(tmp_path_factory: pytest.TempPathFactory) -> "ag.Run":
    settings = {
        "task.n_symbols": 4, "task.longest": 4, "task.length": 12, "d_model": 16, "model.d_mlp": 16,
        "data.n_train": 64, "data.n_test": 16, "steps": 24, "batch": 16, "train.checkpoint_every": 8,
    }  # fmt: skip
    return ag.train("copy8", name="c", settings=settings, runs_dir=tmp_path_factory.mktemp("runs"), progress=False)


def test_every_checkpoint_has_the_scores_that_the_lens_gives_it(copying_run) -> None:
    found = induction_phase(copying_run, n_inputs=8, threshold=0.2)
    assert found["steps"] == copying_run.steps
    for place in (0, -1):
        step = found["steps"][place]
        one = induction(ag.open(f"run:{copying_run.path}@{step}"), n_inputs=8)
        for name in ("induction", "previous-token", "duplicate-token"):
            best = max(head[name] for head in one["heads"])
            assert found["series"][name][place] == pytest.approx(best, abs=1e-6)
        assert found["series"]["gain"][place] == pytest.approx(one["losses"]["gain"], abs=1e-6)
        assert found["counted_gain"][place] == pytest.approx(one["losses"]["counted_gain"], abs=1e-6)
    assert (found["gains_from"] is None) == (found["counted_gain"][-1] < 0.1)
    assert not any(cell is None or cell == "None" for row in found.tables[0].rows for cell in row)
    held = {row["step"]: row["test_loss"] for row in copying_run.metrics() if "test_loss" in row}
    assert dict(zip(found["curves"]["held out"]["steps"], found["curves"]["held out"]["loss"], strict=True)) == held
    json.loads(found.to_json())


def test_the_page_has_a_section(copying_run) -> None:
    subject = ag.open(copying_run)
    looks = {
        "verdict": ag.certify(subject),
        "induction": induction(subject, n_inputs=8),
        "induction_phase": induction_phase(subject),
    }
    page = render(subject, looks)
    assert '<section id="induction">' in page
    assert '<section id="induction_phase">' in page
    assert looks["induction"].claim[1:] in page


def test_phases_want_checkpoints_and_a_share(copying_run) -> None:
    with pytest.raises(SubjectError, match="no checkpoints"):
        induction_phase(planted("induction"))
    with pytest.raises(ConfigError, match="share is 0"):
        induction_phase(copying_run, share=0.0)
