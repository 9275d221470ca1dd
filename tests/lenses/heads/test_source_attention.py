"""The alignment lens: against plain computation, on heads that look by position or by content, and on random ones."""

import json
import math

import numpy as np
import pytest
import torch
from torch import Tensor

import algoscope as ag
from algoscope.config import ModelConfig
from algoscope.core.errors import ConfigError, SubjectError, TaskMismatchError, UnknownNameError
from algoscope.core.renaming import RenamedWarning
from algoscope.doors.report.report import prompts_of, questions_of, render
from algoscope.lenses.heads.position_or_content import PARTS, _products, interchange, pattern_change, score_parts
from algoscope.lenses.heads.source_attention import _sources, source_attention
from algoscope.networks.build import build
from algoscope.planted.handwritten import SHARP, Stream, blank, fill, plant
from algoscope.planted.models import LOGIT, shuffled
from algoscope.planted.table import PLANTED
from algoscope.subjects.edits import Patch
from algoscope.subjects.planted import subject_of
from algoscope.subjects.subject import Subject
from algoscope.tasks.strings.reversal import Reversal

SMALL = Reversal(alphabet="xyzw", length=3)


def untrained(task: Reversal = SMALL, seed: int = 0, **fields) -> Subject:
    shape = {"d_model": 16, "n_layers": 2, "n_heads": 2, "init_embed_std": 1.0, "init_matrix_std": 0.5} | fields
    return Subject("untrained", build(ModelConfig(d_vocab=task.d_vocab, n_ctx=task.n_ctx, **shape), seed), task)


def by_hand(task: Reversal, n_heads: int = 1, share: float = 1.0, lure: float = 0.0) -> Subject:
    """Heads that all look along the anti-diagonal and together write what stands there.

    `lure` is the score, in parts of `SHARP`, that the first letter of the alphabet draws wherever it stands; `share` is
    how much of the letter each head writes.
    """
    k, n = len(task.alphabet), task.length
    stream = Stream(letter=k, place=task.n_ctx, copied=k)
    model = blank(
        stream, d_vocab=task.d_vocab, n_ctx=task.n_ctx, n_layers=1, n_heads=n_heads, d_head=task.n_ctx + k, d_mlp=None
    )
    letter, place = stream.read("letter"), stream.read("place")
    last = place[2 * n : 2 * n + 1]
    fill(
        model, tokens=letter, places=place,
        unembedding=LOGIT * torch.cat([stream.read("copied"), 0 * last, last]),
    )  # fmt: skip
    wanted = torch.zeros(task.n_ctx, task.n_ctx)
    for query in range(n, 2 * n):
        wanted[query, 2 * n - 1 - query] = 1
    everywhere = place.sum(dim=0, keepdim=True)
    for head in range(n_heads):
        plant(
            model, (0, head),
            query=SHARP * torch.cat([place, lure * everywhere]),
            key=torch.cat([wanted @ place, letter[:1]]),
            value=letter, out=share * stream.write("copied"),
        )  # fmt: skip
    return Subject("by hand", model, task)


def every(task: Reversal) -> Tensor:
    return task.at(torch.arange(task.domain_size))


# ---------------------------------------------------------------------- the task's own map


@pytest.mark.parametrize("task", [Reversal(), SMALL, Reversal(alphabet="ab", length=1)])
def test_the_token_at_a_source_is_the_one_that_comes_next(task: Reversal) -> None:
    tokens = task.sample(50, torch.Generator().manual_seed(0))
    sources = task.sources["letter"]
    assert list(sources) == list(range(task.length, 2 * task.length))
    for query, (source,) in sources.items():
        assert torch.equal(tokens[:, source], tokens[:, query + 1])


# ---------------------------------------------------------------------- planted heads


def test_reversal_is_aligned_by_position_alone_and_the_answers_follow() -> None:
    found = ag.lenses.source_attention("planted:reversal")
    assert (found["verdict"], found["causal"]) == ("by position alone", "carried")
    assert found["covered"] == {"inputs": 32_768, "of": 32_768, "method": "exhaustive", "pairs": 2_000}
    [head] = found["heads"]
    assert head["share"] == pytest.approx(1, abs=1e-6)
    assert head["lowest"] == pytest.approx(1, abs=1e-6)
    assert head["change"] == pytest.approx(dict.fromkeys(("both", "query", "key"), 0), abs=1e-6)
    assert head["score_parts"] == pytest.approx(dict(zip(PARTS, (1, 0, 0, 0), strict=True)), abs=1e-6)
    assert head["share_by_position"] == pytest.approx(1, abs=1e-6)
    for place in found["positions"]:
        assert place["chance"] == pytest.approx(1 / (place["query"] + 1))
        assert (place["heads"], place["right"], place["kept"], place["follows"]) == (["L0H0"], 1, 0, 1)
    assert "5 of 5 answer positions" in found.claim
    assert "by position alone" in found.claim


def test_reversal_wrong_looks_the_same_and_its_answers_do_not_follow() -> None:
    right, wrong = (source_attention(f"planted:{name}", n_pairs=300) for name in ("reversal", "reversal-wrong"))
    assert (wrong["verdict"], wrong["causal"]) == ("by position alone", "neither")
    np.testing.assert_array_equal(wrong["share"].values, right["share"].values)
    assert [place["follows"] for place in wrong["positions"]] == [0] * 5
    assert [place["right"] for place in wrong["positions"]] == [0] * 5
    assert "0.0% of the answers are right" in wrong.claim


@pytest.mark.parametrize("task", [SMALL, Reversal(alphabet="ab", length=9), Reversal(alphabet="αβγ", length=1)])
def test_any_alphabet_and_length(task: Reversal) -> None:
    found = source_attention(by_hand(task))
    assert (found["verdict"], found["causal"]) == ("by position alone", "carried")
    assert found["share"].values.shape == (1, task.length)


def test_a_head_that_a_letter_lures_away_looks_by_content_too() -> None:
    task = Reversal()
    found = source_attention(by_hand(task, lure=2.0))
    assert (found["verdict"], found["causal"]) == ("by content too", "neither")
    [head] = found["heads"]
    assert head["lowest"] == pytest.approx(1 / 5, abs=1e-6), "where the letter stands once, one position looks at it"
    assert head["change"]["query"] == pytest.approx(0, abs=1e-6), "what the query is does not matter"
    assert head["change"]["key"] == pytest.approx(head["change"]["both"], abs=1e-6)
    assert head["change"]["key"] > 0.2
    assert head["score_parts"]["position-content"] > 0.3
    assert head["score_parts"]["content-content"] == pytest.approx(0, abs=1e-6)
    there_or_nowhere = 1 / 8 + (7 / 8) ** 5  # the letter is the source, or none of the five
    assert [place["share"] for place in found["positions"]] == pytest.approx([there_or_nowhere] * 5, abs=1e-6)


def test_heads_that_share_the_work_are_given_another_output_together() -> None:
    task = SMALL
    found = source_attention(by_hand(task, n_heads=2, share=0.5))
    assert [place["heads"] for place in found["positions"]] == [["L0H0", "L0H1"]] * 3
    assert found["causal"] == "carried"
    tokens = every(task)
    alone = interchange(by_hand(task, n_heads=2, share=0.7), tokens, 3, [(0, 0)])
    assert alone["follows"] < 0.9, "one of two equal heads does not decide"


# ---------------------------------------------------------------------- against plain computation


@pytest.mark.parametrize(
    "shape",
    [{}, {"normalization_type": None}, {"n_kv_heads": 1}, {"positions": "rotary"}, {"positions": "alibi"}],
    ids=lambda shape: " ".join(f"{key} {value}" for key, value in shape.items()) or "plain",
)
def test_shares_and_changes_are_those_of_plain_runs(shape: dict) -> None:
    subject = untrained(**shape).to_dtype(torch.double)
    tokens = every(SMALL)
    read, other = tokens[:, :-1], tokens[:, :-1].roll(1, dims=0)
    found = source_attention(subject)
    cache, swapped_cache = (subject.run_with_cache(rows)[1] for rows in (read, other))
    change = pattern_change(subject, tokens, (3, 4, 5))
    for layer in range(2):
        pattern = cache["pattern", layer]
        for i, (query, source) in enumerate({3: 2, 4: 1, 5: 0}.items()):
            share = pattern[:, :, query, source].mean(0).numpy()
            np.testing.assert_allclose(found["share"].values[2 * layer : 2 * layer + 2, i], share, atol=1e-10)
            both = 0.5 * (pattern - swapped_cache["pattern", layer])[:, :, query].abs().sum(-1).mean(0)
            np.testing.assert_allclose(change[0, layer, :, i], both, atol=1e-10)
        for side, site in ((1, "q"), (2, "k")):
            edit = Patch((site, layer), value=swapped_cache[site, layer])
            moved = subject.run(read, record=[("pattern", layer)], edits=[edit])[1]["pattern", layer]
            wanted = 0.5 * (pattern - moved)[:, :, [3, 4, 5]].abs().sum(-1).mean(0)
            np.testing.assert_allclose(change[side, layer], wanted, atol=1e-10)


@pytest.mark.parametrize("seed", range(3))
def test_another_input_s_output_is_given_at_one_position_and_in_some_heads_alone(seed: int) -> None:
    subject = untrained(seed=seed, normalization_type=None, init_matrix_std=0.7).to_dtype(torch.double)
    tokens, query, heads = every(SMALL), 4, [(0, 1), (1, 0)]
    read, own, other = tokens[:, :-1], tokens[:, query + 1], tokens[:, query + 1].roll(1)
    cache = subject.run_with_cache(read)[1]
    said = {}
    for where in (query, None):
        edits = [Patch(("z", at), value=cache["z", at].roll(1, dims=0), head=h, pos=where) for at, h in heads]
        tokens_said = subject.run(read, edits=edits)[0][:, query].argmax(-1)
        said[where] = {
            name: float((tokens_said == right)[own != other].double().mean())
            for name, right in (("kept", own), ("follows", other))
        }
    assert interchange(subject, tokens, query, heads) == said[query] != said[None]


@pytest.mark.parametrize("kv_heads", [1, 2])
def test_the_four_products_are_those_of_the_weights(kv_heads: int) -> None:
    subject = untrained(normalization_type=None, n_kv_heads=kv_heads, n_layers=1, attn_bias=True).to_dtype(torch.double)
    with torch.no_grad():
        subject.model.block(0).attn.q.bias.normal_(generator=torch.Generator().manual_seed(1))
        subject.model.block(0).attn.k.bias.normal_(generator=torch.Generator().manual_seed(2))
    tokens, sources = every(SMALL), _sources(subject, None)
    model, attn = subject.model, subject.model.block(0).attn
    stream = model.embed(tokens[:, :-1]) + model.pos_embed.weight[: SMALL.n_ctx - 1]
    place, content = stream.mean(0, keepdim=True).expand_as(stream), stream - stream.mean(0)

    def queries(x: Tensor, bias: bool) -> Tensor:
        return (x @ attn.q.weight.mT + bias * attn.q.bias).unflatten(-1, (2, 8))[:, list(sources.queries)]

    def keys(x: Tensor, bias: bool) -> Tensor:
        k = (x @ attn.k.weight.mT + bias * attn.k.bias).unflatten(-1, (kv_heads, 8))
        return k.repeat_interleave(2 // kv_heads, dim=2)

    found = _products(subject, tokens, sources, 0) * sources.visible
    wanted = [
        torch.einsum("bqhd,bkhd->bhqk", queries(one, one is place), keys(other, other is place)) / math.sqrt(8)
        for one in (place, content)
        for other in (place, content)
    ]
    torch.testing.assert_close(found, torch.stack(wanted) * sources.visible, atol=1e-10, rtol=0)


@pytest.mark.parametrize("shape", [{}, {"positions": "rotary"}, {"positions": "alibi"}, {"positions": None}])
def test_the_parts_of_the_scores_add_up(shape: dict) -> None:
    subject = untrained(**shape).to_dtype(torch.double)
    tokens, sources = every(SMALL), _sources(subject, None)
    scores = subject.run_with_cache(tokens[:, :-1])[1]["attn_scores", 1][:, :, list(sources.queries)]
    together = _products(subject, tokens, sources, 1).sum(0)
    difference = torch.where(sources.visible, together - scores, 0.0)
    assert float(difference.abs().max()) < 1e-10
    parts, by_position = score_parts(subject, tokens, sources)
    np.testing.assert_allclose(parts.sum(-1), 1, atol=1e-10)
    assert by_position.shape == (2, 2)


def test_without_positions_nothing_varies_by_position_but_the_separator() -> None:
    """Letters are drawn alike everywhere, so that means differ between them and the separator alone."""
    parts, _ = score_parts(untrained(positions=None), every(SMALL), _sources(untrained(positions=None), None))
    with_positions, _ = score_parts(untrained(), every(SMALL), _sources(untrained(), None))
    assert parts[0, :, 0].mean() < with_positions[0, :, 0].mean()


def test_models_that_normalise_queries_and_keys_are_not_split() -> None:
    found = source_attention(untrained(qk_norm=True))
    assert "score parts" not in [panel.name for panel in found.panels]
    assert all("score_parts" not in head for head in found["heads"])


def test_weak_heads_that_carry_the_answer_together_are_found_by_their_effect() -> None:
    """Each has a third of its attention on the source, below the threshold: what they carry decides."""
    subject = by_hand(Reversal(), n_heads=3, share=1 / 3)
    subject.model.blocks[0].attn.q.weight.data *= 1.5 / SHARP
    found = source_attention(subject, n_inputs=500, n_pairs=200)
    assert max(head["share"] for head in found["heads"]) < 0.5
    assert not any(row["aligned"] for row in found["positions"])
    assert all(set(row["heads"]) == {"L0H0", "L0H1", "L0H2"} for row in found["positions"])
    assert (found["causal"], found["verdict"]) == ("carried", "by position alone")
    assert "L0H0" in found.claim


# ---------------------------------------------------------------------- nothing to find


def test_shuffled_and_random_models_are_not_aligned() -> None:
    planted = PLANTED.load("reversal")()
    for seed in range(8):
        for subject in (
            subject_of(shuffled(planted, seed), "shuffled"),
            untrained(Reversal(), seed, n_heads=4, d_model=32),
            untrained(Reversal(), seed, init_matrix_std=0.05),
        ):
            found = source_attention(subject, n_inputs=200, n_pairs=50)
            assert found["verdict"] == "not aligned", (subject.name, seed, found.claim)
            assert found["causal"] != "carried"


# ---------------------------------------------------------------------- what it says and draws


def test_panels_say_what_was_found() -> None:
    found = source_attention(by_hand(SMALL, n_heads=2, share=0.5))
    pattern = found["pattern"]
    assert pattern.values.shape == (1, 2, 3, SMALL.n_ctx - 1)
    assert [np.argwhere(row == "\u25cf").ravel().tolist() for row in pattern.words[0, 0]] == [[2], [1], [0]]
    assert np.isnan(pattern.values[0, 0, 0, 4:]).all()
    np.testing.assert_allclose(np.nansum(pattern.values, axis=-1), 1, atol=1e-6)
    assert found["swapped"].axes[0].labels == ("right before", "still right", "follows")
    assert ag.Finding.from_json(found.to_json()).to_json() == found.to_json()
    assert found.plot() is not None


def test_the_command_and_the_page_show_it(run) -> None:
    code, said, _ = run(
        "lens", "source_attention", "planted:reversal", "--n-inputs", 500, "--n-pairs", 100, "--json", "--quiet"
    )
    found = json.loads(said)
    assert code == 0
    assert (found["verdict"], found["covered"]["method"]) == ("by position alone", "sampled")
    subject = by_hand(SMALL)
    asked = questions_of(subject, prompts_of(subject))
    page = render(subject, {name: asked[name]() for name in ("verdict", "attention", "source_attention")})
    assert '<section id="source_attention">' in page
    assert "over all 64 inputs: by position alone" in page


def test_what_cannot_be_asked_is_one_line() -> None:
    with pytest.raises(TaskMismatchError, match=r"addition does not name .* such as reversal"):
        source_attention("planted:carry-adder")
    with pytest.raises(TaskMismatchError, match="reads free text"):
        source_attention("planted:induction")
    with pytest.raises(UnknownNameError, match="unknown source 'leter': did you mean 'letter'"):
        source_attention("planted:reversal", what="leter")
    with pytest.raises(SubjectError, match="is not causal"):
        source_attention(untrained(causal=False))
    for options in ({"n_pairs": 1}, {"n_inputs": 1}):
        with pytest.raises(ConfigError, match="is 1: "):
            source_attention("planted:reversal", **options)
    with pytest.warns(RenamedWarning, match="n_inputs"), pytest.raises(ConfigError, match="n_inputs is 1: "):
        source_attention("planted:reversal", at_most=1)
