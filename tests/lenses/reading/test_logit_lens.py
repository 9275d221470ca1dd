"""The logit lens: against a direct computation on every family, on planted models, and where nothing is to be found."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

import algoscope as ag
from algoscope.config import ModelConfig
from algoscope.core.errors import AlgoscopeError, ConfigError, VocabularyError
from algoscope.core.finding import Finding
from algoscope.networks.build import build
from algoscope.planted.models import shuffled
from algoscope.planted.table import PLANTED
from algoscope.subjects.huggingface import convert
from algoscope.subjects.planted import subject_of
from algoscope.subjects.subject import Subject
from algoscope.subjects.text import Numbers
from hf_models import CONFIGS, D_VOCAB, make, save
from random_models import FAMILIES, subject

PAIR = ["12+34", "99+1"]
CARRIES = ["999+001", "123+456", "955+045", "500+500", "199+801"]
NUMBERS = "3 1 4 1 5 9 2 6 5 3 5"


def expected_of(logits: list[torch.Tensor], target: torch.Tensor, rival: torch.Tensor) -> dict[str, np.ndarray]:
    """What the lens should say, in numpy, from logits [pos d_vocab] after the embedding and after each block."""
    stack = torch.stack(logits).double().numpy()
    chance = np.exp(stack - stack.max(-1, keepdims=True))
    chance /= chance.sum(-1, keepdims=True)
    here = np.arange(len(target))
    own, other = (stack[:, here, tokens.numpy()] for tokens in (target, rival))
    return {
        "probability": chance[:, here, target.numpy()],
        "rank": (stack > own[..., None]).sum(-1),
        "entropy": -(chance * np.log(chance)).sum(-1),
        "kl": (chance[-1] * (np.log(chance[-1]) - np.log(chance))).sum(-1),
        "difference": own - other,
    }


def check(found: Finding, logits: list[torch.Tensor], target: torch.Tensor, model: Subject, bound: float) -> None:
    """Facts and panels of the first input are those of a direct computation; equal logits do not occur here."""
    last = logits[-1]
    rival = last.scatter(-1, target[:, None], -torch.inf).argmax(-1)
    for name, values in expected_of(logits, target, rival).items():
        np.testing.assert_allclose(found[name], values, atol=bound, rtol=bound)
        panel = next(panel for panel in found.panels if panel.name.startswith(name))
        np.testing.assert_array_equal(panel.values, found[name])
    assert found["target"] == model.to_str_tokens(target)
    assert found["rival"] == model.to_str_tokens(rival)
    for layer, own in enumerate(logits):
        for position, row in enumerate(own.double().softmax(-1)):
            best = row.topk(5)
            shown = found["top"][layer][position]
            assert [one["token"] for one in shown] == model.to_str_tokens(best.indices)
            np.testing.assert_allclose([one["probability"] for one in shown], best.values, atol=bound)
            words = [panel.words[layer, position] for panel in found.panels if panel.words is not None]
            assert set(words[:5]) == {shown[0]["token"]}


# ---------------------------------------------------------------------- against a direct computation


@pytest.mark.parametrize("family", CONFIGS)
def test_it_equals_the_library_s_own_norm_and_head_on_every_family(family: str) -> None:
    source = make(family)
    model = Subject(family, convert(source), text=Numbers(D_VOCAB))
    tokens = model.to_tokens(NUMBERS)
    base = source.base_model
    norm = next(getattr(base, name) for name in ("ln_f", "final_layer_norm", "norm") if hasattr(base, name))
    with torch.no_grad():
        out = source(tokens, output_hidden_states=True)
        read = [source.get_output_embeddings()(norm(hidden))[0] for hidden in out.hidden_states[:-1]]
    logits = [*read, out.logits[0]]
    found = ag.lenses.logit(model, [NUMBERS])
    assert found["layers"] == ["embed", *range(model.cfg.n_layers)]
    assert found["tokens"] == NUMBERS.split()
    check(found, logits, logits[-1].argmax(-1), model, 1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_it_equals_a_direct_computation_on_our_own_shapes(family: str) -> None:
    model = subject(family)  # in float64
    prompt = model.lay_out("12+34")
    own, cache = model.run_with_cache(prompt.tokens)
    net = model.model
    streams = [cache["resid_pre", 0], *(cache["resid_post", layer] for layer in range(model.cfg.n_layers))]
    logits = []
    for stream in (stream[0] for stream in streams):
        norm = model.cfg.normalization_type if model.cfg.final_norm else None
        if norm == "LN":
            stream = stream - stream.mean(-1, keepdim=True)
        if norm is not None:
            stream = stream / (stream.pow(2).mean(-1, keepdim=True) + model.cfg.eps).sqrt() * net.ln_final.weight
        if norm == "LN":
            stream = stream + net.ln_final.bias
        sums, cap = stream @ net.W_U.mT + (0 if net.b_U is None else net.b_U), model.cfg.output_logits_soft_cap
        logits.append(sums if cap is None else cap * (sums / cap).tanh())
    target = own[0].argmax(-1)
    target[prompt.first_answer :] = torch.tensor([6, 4, 0, 12])  # 12 + 34 = 46, units first, then the end
    found = ag.lenses.logit(model, ["12+34"])
    check(found, logits, target, model, 1e-10)


@pytest.mark.parametrize("family", ["gpt2", "llama", "qwen3"])
def test_the_last_layer_is_exactly_what_the_model_says(family: str) -> None:
    model = Subject(family, convert(make(family)), text=Numbers(D_VOCAB))
    logits = model(model.to_tokens(NUMBERS))[0].double()
    found = ag.lenses.logit(model, [NUMBERS], target="7", rival="9")
    assert found["probability"][-1] == logits.log_softmax(-1).exp()[:, 7].tolist()
    assert found["difference"][-1] == (logits[:, 7] - logits[:, 9]).tolist()
    assert found["kl"][-1] == [0] * 11
    assert (found["agreement"][-1], found["mean_kl"][-1]) == (1, 0)


# ---------------------------------------------------------------------- what was planted


@pytest.mark.parametrize(
    ("name", "inputs"),
    [("carry-adder", CARRIES), ("reversal", ["abcde", "hgfed", "aabca"]), ("clock", ["5+9", "112+1", "60+60"])],
)
def test_the_right_answer_is_readable_from_the_layer_that_the_mechanism_names(name: str, inputs: list[str]) -> None:
    planted = PLANTED.load(name)()
    found = ag.lenses.logit(subject_of(planted, name), inputs)
    documents = found["inputs"]
    assert [document["input"] for document in documents] == inputs
    at = [document["layers"].index(document["readable_after"]) for document in documents]
    assert max(at) == 1 + planted.mechanism.readable_after, "layers begin with the embedding"
    for document, text in zip(documents, inputs, strict=True):
        said = document["target"][document["first_answer"] :]
        assert "".join(said) == planted.task.expected(text)
    assert "at every answer position" in found.claim


def test_a_carry_becomes_readable_in_the_last_layer_and_digits_without_one_before_it() -> None:
    found = ag.lenses.logit("planted:carry-adder", ["999+001", "123+456"])
    carried, plain = found["inputs"]
    assert (carried["readable_after"], plain["readable_after"]) == (1, 0)
    first = carried["first_answer"]
    assert np.array(carried["rank"])[1, first : first + 3].min() > 0, "the units, the tens and the hundreds carry"
    assert np.array(carried["rank"])[2, first:].max() == 0
    np.testing.assert_allclose(np.array(carried["probability"])[2, first:], 1, atol=1e-6)
    assert "from layer 1 on" in found.claim
    assert "from layer 0 on" in found.claim


def test_induction_is_read_from_its_second_layer_and_its_opposite_from_none() -> None:
    text = "qwertyq"
    right, wrong = (ag.lenses.logit(f"planted:{name}", [text], target="w") for name in ("induction", "induction-wrong"))
    assert (right["readable_after"], wrong["readable_after"]) == (1, None)
    assert right["top"][2][-1][0]["token"] == "w"
    assert np.array(right["probability"])[:2, -1] == pytest.approx([1 / 26, 1 / 26])
    assert right["entropy"][0] == pytest.approx([math.log(26)] * 7)
    assert "is not the top prediction at the last position" in wrong.claim


def test_of_equal_tokens_the_lower_number_stands_first() -> None:
    found = ag.lenses.logit("planted:induction", ["abab"], target="d", top=4)  # after the embedding nothing is written
    assert [one["token"] for one in found["top"][0][0]] == ["a", "b", "c", "d"]
    assert found["rank"][0] == [3] * 4
    whole = ag.lenses.logit("planted:induction", ["abab"], target="d", top=26)
    assert [one["token"] for one in whole["top"][0][0]] == list("abcdefghijklmnopqrstuvwxyz")


# ---------------------------------------------------------------------- where there is nothing


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("name", "inputs"), [("carry-adder", CARRIES), ("reversal", ["abcde", "hgfed", "aabca"])])
def test_shuffled_weights_are_read_as_right_nowhere(name: str, inputs: list[str], seed: int) -> None:
    destroyed = subject_of(shuffled(PLANTED.load(name)(), seed), "shuffled")
    found = ag.lenses.logit(destroyed, inputs)
    assert [document["readable_after"] for document in found["inputs"]] == [None] * len(inputs)


def test_random_weights_are_read_as_right_nowhere() -> None:
    for seed in range(5):
        found = ag.lenses.logit(subject(seed=seed), PAIR)
        assert [document["readable_after"] for document in found["inputs"]] == [None, None]
        assert found["agreement"][-1] == 1


# ---------------------------------------------------------------------- what it says


def test_several_inputs_are_documents_and_summaries_count_answer_positions() -> None:
    model = subject()
    both, *alone = (ag.lenses.logit(model, inputs) for inputs in (PAIR, PAIR[:1], PAIR[1:]))
    keys = set(both["inputs"][0])
    assert [{key: document[key] for key in keys} for document in both["inputs"]] == [
        {key: one.facts[key] for key in keys} for one in alone
    ]
    assert {key: both[key] for key in keys} == both["inputs"][0]
    assert "inputs" not in alone[0].facts
    kl = np.mean([np.array(one["kl"])[:, 5:].mean(axis=1) for one in alone], axis=0)
    np.testing.assert_allclose(both["mean_kl"], kl)
    top = np.array([[[cell[0]["token"] for cell in row] for row in one["top"]] for one in alone])[:, :, 5:]
    np.testing.assert_allclose(both["agreement"], (top == top[:, -1:]).mean(axis=(0, 2)))
    np.testing.assert_array_equal(both["agreement by layer"].values, both["agreement"])
    np.testing.assert_array_equal(both["mean kl by layer"].values, both["mean_kl"])


def test_on_a_text_every_position_counts_and_the_target_is_what_the_model_says() -> None:
    model = Subject("text", convert(make("gpt2")), text=Numbers(D_VOCAB))
    found = ag.lenses.logit(model, [NUMBERS])
    said = model(model.to_tokens(NUMBERS))[0].argmax(-1)
    assert found["target"] == [str(token) for token in said.tolist()]
    np.testing.assert_allclose(found["mean_kl"], np.array(found["kl"]).mean(axis=1))
    assert found["readable_after"] is not None
    assert found["first_answer"] == 10


def test_panels_say_what_0_and_1_mean_and_hold_the_words() -> None:
    found = ag.lenses.logit(subject(), PAIR, top=2)
    names = ("probability", "rank", "entropy", "kl", "difference")
    assert [panel.name for panel in found.panels[:10]] == [f"{name} {text}" for name in names for text in PAIR]
    for panel in found.panels[:10]:
        assert [axis.name for axis in panel.axes] == ["layer", "position"]
        assert panel.axes[0].labels == ("embed", 0, 1)
        assert panel.axes[1].labels[5] == "=_5"
        assert panel.zero
        assert panel.hover[0, 0].count("\n") == 1
    assert found["probability 12+34"].one == "certain"
    assert found["entropy 12+34"].span == (0, pytest.approx(math.log(14)))


def test_the_command_writes_json_and_a_figure(run, tmp_path: Path) -> None:
    arguments = ["lens", "logit", "planted:carry-adder", "--input", "999+001", "--input", "1+2", "--top", 3]
    code, out, err = run(*arguments, "--out", tmp_path / "lens.html", "--json", "--quiet")
    assert code == 0, err
    found = json.loads(out)
    assert found["subject"] == "planted:carry-adder"
    assert found["tokens"][:8] == [*"999+001="]
    assert found["layers"] == ["embed", 0, 1]
    for name in ("probability", "rank", "entropy", "kl", "difference"):
        assert np.array(found[name]).shape == (3, 12)
    assert found["top"][2][7][0] == {"token": "0", "probability": pytest.approx(1)}
    assert len(found["top"][0][0]) == 3
    assert len(found["inputs"]) == 2
    assert "Plotly" in (tmp_path / "lens.html").read_text()
    code, out, _ = run(*arguments, "--target", "9", "--rival", "0", "--quiet", "--json")
    assert set(json.loads(out)["target"]) == {"9"}
    code, _, err = run("lens", "logit", "planted:carry-adder", "--input", "1+2", "--target", "12")
    assert (code, err.count("\n")) == (2, 1)
    assert "'12'" in err


def test_tokens_of_a_tokenizer_are_named_by_their_text(tmp_path: Path) -> None:
    model = ag.open(f"hf:{save(tmp_path / 'gpt2')}")
    found = ag.lenses.logit(model, ["The capital of"], target=" Paris", rival=" is")
    assert (set(found["target"]), set(found["rival"])) == ({" Paris"}, {" is"})
    assert "".join(found["tokens"]) == "The capital of"


@pytest.mark.parametrize("d_vocab", [1, 2, 3, 4])
def test_of_a_vocabulary_of_fewer_than_five_tokens_all_are_listed(d_vocab: int) -> None:
    cfg = ModelConfig(d_vocab=d_vocab, n_ctx=8, d_model=8, n_heads=2)
    model = Subject("few", build(cfg, 0), text=Numbers(d_vocab))
    found = ag.lenses.logit(model, f"0 {d_vocab - 1} 0")
    assert [len(listed) for layer in found["top"] for listed in layer] == [d_vocab] * 9
    assert sum(one["probability"] for one in found["top"][0][0]) == pytest.approx(1)
    found.to_json()
    with pytest.raises(ConfigError, match=f"top is 5: choose from 1 to the {d_vocab} tokens"):
        ag.lenses.logit(model, "0", top=5)


@pytest.mark.parametrize(
    ("inputs", "options", "error", "words"),
    [
        ([], {}, ConfigError, "at least one input"),
        (["12+34"], {"top": 0}, ConfigError, "top takes a whole number, from 1 .* not 0"),
        (["12+34"], {"top": 15}, ConfigError, "top is 15"),
        (["12+34"], {"target": "12"}, VocabularyError, "'12' is 2 tokens"),
        (["12+34"], {"rival": "x"}, VocabularyError, "'x'"),
        (["12+34"], {"target": "1", "rival": "1"}, VocabularyError, "both '1'"),
        (["12+"], {}, VocabularyError, "not a sum"),
    ],
)
def test_bad_input_is_one_line(inputs: list[str], options: dict, error: type[AlgoscopeError], words: str) -> None:
    with pytest.raises(error, match=words) as raised:
        ag.lenses.logit(subject(), inputs, **options)
    assert "\n" not in str(raised.value)
