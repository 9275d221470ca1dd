"""The ablation lens: against edits written out by hand, and on planted models whose needed parts are known."""

import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import algoscope as ag
from algoscope.config import ModelConfig
from algoscope.core.errors import ConfigError, SubjectError, UnknownNameError, VocabularyError
from algoscope.data import seeded
from algoscope.lenses.interventions import ablation
from algoscope.lenses.interventions.ablation import ablate
from algoscope.lenses.interventions.replacements import KINDS, components, others
from algoscope.networks.build import build
from algoscope.networks.taps import Tap
from algoscope.planted.table import PLANTED
from algoscope.runs.run_folder import weights_hash
from algoscope.subjects.huggingface import convert
from algoscope.subjects.opening import open_subject
from algoscope.subjects.subject import Subject
from algoscope.subjects.text import Numbers
from algoscope.tasks.digits.addition import Addition
from hf_models import CONFIGS, D_VOCAB, make

CPU = torch.device("cpu")
TEXTS = ["3 1 4 1 5 9 2 6", "2 7 1 8 2 8 1 8", "1 6 1 8 0 3 3 9", "0 5 7 7 2 1 5 6", "1 4 1 4 2 1 3 5"]


def by_name(found: ag.Finding) -> dict[tuple[str, str], dict]:
    return {(row["component"], row["kind"]): row for row in found["components"]}


class Hand(Tap):
    """Writes given values at given sites, to one head where one is named, and keeps what else passes."""

    kinds = frozenset({"z", "attn_out", "mlp_out", "embed", "pos_embed"})

    def __init__(self, values: dict[tuple[str, int | None], Tensor] | None = None, head: int | None = None) -> None:
        self.values, self.head, self.seen = values or {}, head, {}

    def __call__(self, kind: str, layer: int | None, value: Tensor) -> Tensor:
        self.seen[kind, layer] = value
        if (kind, layer) not in self.values:
            return value
        new = self.values[kind, layer].expand_as(value)
        if self.head is None:
            return new
        chosen = torch.arange(value.shape[2]) == self.head
        return torch.where(chosen[:, None], new, value)


def parts_by_hand(subject: Subject) -> Iterable[tuple[str, list[tuple[str, int | None]], int | None]]:
    cfg = subject.cfg
    for layer in range(cfg.n_layers):
        for head in range(cfg.n_heads):
            yield f"L{layer}H{head}", [("z", layer)], head
        yield f"L{layer} attention", [("attn_out", layer)], None
        if cfg.d_mlp is not None:
            yield f"L{layer} MLP", [("mlp_out", layer)], None
            yield f"L{layer}", [("attn_out", layer), ("mlp_out", layer)], None
    yield "embed", [("embed", None)], None
    if cfg.positions in ("learned", "sinusoidal"):
        yield "pos_embed", [("pos_embed", None)], None


def by_hand(subject: Subject, tokens: Tensor, n: int, seed: int) -> dict[tuple[str, str], Tensor]:
    """Logits of every ablation, of all inputs at once; the first `n` are those that others take from."""
    clean = Hand()
    subject.model(tokens, tap=clean)
    order = others(len(tokens), n, seed)
    found = {}
    for name, sites, head in parts_by_hand(subject):
        values = {
            "zero": {site: torch.zeros_like(clean.seen[site]) for site in sites},
            "mean": {site: clean.seen[site][:n].mean(dim=0, keepdim=True) for site in sites},
            "resample": {site: clean.seen[site][:n][order] for site in sites},
        }
        for kind in KINDS:
            found[name, kind] = subject.model(tokens, tap=Hand(values[kind], head))
    return found


# ---------------------------------------------------------------------- against edits by hand, in float64


SHAPES = {
    "plain": {"n_heads": 2},
    "attention only": {"n_heads": 2, "d_mlp": None, "positions": "sinusoidal"},
    "parallel, rotary": {"n_heads": 4, "n_kv_heads": 2, "parallel": True, "positions": "rotary", "attn_bias": True},
    "no norms": {"normalization_type": None, "gated_mlp": True, "tied_head": False},
}


@pytest.mark.parametrize("shape", SHAPES)
def test_free_text_is_measured_as_by_hand(shape: str) -> None:
    cfg = ModelConfig(d_vocab=10, n_ctx=12, init_embed_std=1.0, **SHAPES[shape])
    subject = Subject(shape, build(cfg, 3).double(), text=Numbers(10))
    found = ablate(subject, inputs=TEXTS, seed=5)
    tokens = torch.tensor([[int(word) for word in text.split()] for text in TEXTS])
    read, targets = tokens[:, :-1], tokens[:, 1:]
    whole = subject.model(read).log_softmax(-1)
    loss = torch.nn.functional.cross_entropy(whole.transpose(1, 2), targets)
    assert found["baseline"]["loss"] == pytest.approx(float(loss), abs=1e-12)
    rows, expected = by_name(found), by_hand(subject, read, len(TEXTS), seed=5)
    assert list(rows) == list(expected)
    for key, logits in expected.items():
        ours = torch.nn.functional.cross_entropy(logits.transpose(1, 2), targets)
        kl = torch.nn.functional.kl_div(logits.log_softmax(-1), whole, log_target=True, reduction="none")
        assert rows[key]["loss_increase"] == pytest.approx(float(ours - loss), abs=1e-10), key
        assert rows[key]["kl"] == pytest.approx(float(kl.sum(-1).mean()), abs=1e-10), key
        assert rows[key]["by_class"] == [{"class": "all tokens", "loss": rows[key]["loss"], "kl": rows[key]["kl"]}]


@pytest.mark.parametrize("portion", [2**24, 100_000])
def test_a_task_is_counted_as_by_hand_whatever_the_portions(portion: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ablation, "PORTION", portion)
    subject = open_subject("planted:carry-adder").to_dtype(torch.float64)
    found = ablate(subject, n_inputs=150, per_class=20, seed=2)
    plain = subject.task.sample(150, seeded(CPU, 2, 0))
    rows, answers = by_name(found), plain[:, subject.task.prompt_length :]
    expected = by_hand(subject, plain[:, :-1], 150, seed=2)
    assert list(rows) == list(expected)
    for key, logits in expected.items():
        right = (logits[:, subject.task.answer_slice].argmax(-1) == answers).all(-1)
        assert rows[key]["accuracy"] == float(right.double().mean()), key
        assert rows[key]["drop"] == 1 - rows[key]["accuracy"]


def test_what_stands_in_for_an_input_is_never_itself() -> None:
    for n in (2, 3, 50):
        given = others(n + 20, n, seed=n)
        assert sorted(given[:n].tolist()) == list(range(n))
        assert not (given[:n] == torch.arange(n)).any()
        assert 0 <= int(given.min()) <= int(given.max()) < n
    assert not torch.equal(others(50, 50, seed=1), others(50, 50, seed=2))


# ---------------------------------------------------------------------- planted models


@pytest.mark.parametrize("name", ["carry-adder", "reversal", "clock"])
def test_the_parts_of_a_mechanism_are_needed_and_all_others_change_nothing(name: str) -> None:
    mechanism = PLANTED.load(name)().mechanism
    needed = {f"L{layer}H{head}" for layer, head in mechanism.heads.values()}
    needed |= {f"L{layer} MLP" for layer in mechanism.feed_forwards}
    found = ablate(f"planted:{name}", n_inputs=500, per_class=50)
    assert found["baseline"]["accuracy"] == 1
    for (component, kind), row in by_name(found).items():
        if row["group"] in ("head", "feed-forward"):
            if component in needed:
                assert row["accuracy"] < 0.3, (component, kind)
            else:
                assert row["drop"] == 0, (component, kind)
                assert all(one["accuracy"] == 1 for one in row["by_class"])
    for best in found["most_needed"].values():
        assert {row["component"] for row in best if row["drop"]} == needed


def test_without_the_head_below_only_sums_without_a_carry_stay_right() -> None:
    found = ablate("planted:carry-adder", kind="zero")
    below = by_name(found)["L0H1", "zero"]
    assert [(one["class"], one["accuracy"]) for one in below["by_class"]] == [
        ("S0", 1.0), ("S1", 0.0), ("S2", 0.0), ("S3", 0.0),
    ]  # fmt: skip
    assert [one["n"] for one in below["by_class"]] == [200] * 4, "also of the class that is one input in 220"
    low, high = below["interval_95"]
    assert low < below["accuracy"] < high
    assert low < 0.166375 < high, "the share of sums without a carry"
    panel = found["zero by class"]
    assert [axis.name for axis in panel.axes] == ["component", "class"]
    assert panel.axes[0].labels[:3] == ("nothing", "L0H0", "L0H1")
    assert panel.values[2].tolist() == [1, 0, 0, 0]
    assert found["overall"].values[2] == pytest.approx([below["accuracy"]])


def test_either_head_of_the_induction_pair_is_needed_and_the_idle_ones_are_not() -> None:
    found = ablate("planted:induction")
    assert found["baseline"]["loss"] < 1e-3
    rows = by_name(found)
    for kind in KINDS:
        for head in ("L0H1", "L1H0"):
            assert rows[head, kind]["loss_increase"] > 2, (head, kind)
            assert rows[head, kind]["kl"] > 2, (head, kind)
        for head in ("L0H0", "L1H1"):
            assert abs(rows[head, kind]["loss_increase"]) < 1e-6
            assert abs(rows[head, kind]["kl"]) < 1e-6
        assert {row["component"] for row in found["most_needed"][kind][:2]} == {"L0H1", "L1H0"}
    zero = rows["L1H0", "zero"]  # nothing is written: all 26 letters are alike
    assert [one["loss"] for one in zero["by_class"]] == pytest.approx([np.log(26)] * 2, abs=1e-5)
    assert [one["class"] for one in zero["by_class"]] == ["second copy", "first copy"]
    assert found["loss"].values[1].tolist() == [rows["L0H1", kind]["loss_increase"] for kind in KINDS]


def test_the_kinds_differ_and_only_zeros_take_positions_away() -> None:
    found = ablate("planted:carry-adder", n_inputs=1000, per_class=50)
    rows = by_name(found)
    assert len({rows["L0H1", kind]["accuracy"] for kind in KINDS}) == 3
    for column, kind in enumerate(KINDS):
        below = rows["L0H1", kind]
        assert found["overall"].values[2, column] == below["accuracy"]
        assert found[f"{kind} by class"].values[2].tolist() == [one["accuracy"] for one in below["by_class"]]
    assert [rows["pos_embed", kind]["drop"] for kind in KINDS] == [1, 0, 0]


# ---------------------------------------------------------------------- other models


def test_nothing_is_needed_in_a_random_model_which_knows_nothing() -> None:
    task = Addition(n_digits=2)
    cfg = ModelConfig(d_vocab=14, n_ctx=task.n_ctx, n_heads=2, init_embed_std=1.0)
    for seed in range(5):
        found = ablate(Subject("random", build(cfg, seed), task), n_inputs=300, per_class=20)
        assert found["baseline"]["accuracy"] == 0
        assert max(abs(row["drop"]) for row in found["components"]) < 0.02


@pytest.mark.parametrize("family", CONFIGS)
def test_models_of_hugging_face_have_every_component_once(family: str) -> None:
    subject = Subject(family, convert(make(family)), text=Numbers(D_VOCAB))
    found = ablate(subject, kind=("zero", "mean"), n_inputs=3)
    names = [part.name for part in components(subject)]
    assert names == [name for name, _, _ in parts_by_hand(subject)]
    assert [row["component"] for row in found["components"]] == [name for name in names for _ in range(2)]
    assert np.isfinite([row["loss_increase"] for row in found["components"]]).all()
    assert min(row["kl"] for row in found["components"]) > -1e-6
    assert max(row["kl"] for row in found["components"]) > 1e-3


def test_a_small_domain_is_looked_through_whole_and_classes_keep_their_sizes() -> None:
    task = Addition(n_digits=1)
    cfg = ModelConfig(d_vocab=14, n_ctx=task.n_ctx, d_model=16, n_layers=1)
    subject = Subject("small", build(cfg, 0), task)
    sizes = {one["class"]: one["n"] for one in ablate(subject, n_inputs=10, kind="mean")["baseline"]["by_class"]}
    assert sizes == {"S0": 55, "S1": 45}
    by_pattern = ablate(subject, by="pattern", n_inputs=10, kind="mean", per_class=9)["baseline"]["by_class"]
    assert [(one["class"], one["n"]) for one in by_pattern] == [("s", 9), ("9", 9), ("c", 9)]


def test_a_trained_adder_needs_its_embedding_and_its_places(adder: ag.Subject) -> None:
    found = ablate(adder, n_inputs=500, per_class=10)
    assert found["baseline"]["accuracy"] == 1
    rows = by_name(found)
    assert max(rows["embed", kind]["accuracy"] for kind in KINDS) < 0.1, "no answer without the digits"
    assert [rows["pos_embed", kind]["drop"] > 0.5 for kind in KINDS] == [True, False, False]


def test_one_solution_needs_its_first_head_and_its_last_feed_forward(stored_adder: ag.Subject) -> None:
    found = ablate(stored_adder, n_inputs=1000, per_class=100)
    rows = by_name(found)
    for kind in KINDS:
        assert rows["L0H0", kind]["accuracy"] < 0.1
        assert rows["L1 MLP", kind]["accuracy"] < 0.1
        assert 0.1 < rows["L1H0", kind]["accuracy"] < 0.6, "some sums are right without it"
    assert "1,000 random inputs of addition" in found.claim
    assert all(kind in found.claim for kind in KINDS)
    back = ag.Finding.from_json(found.to_json())
    np.testing.assert_array_equal(back["overall"].values, found["overall"].values)


def test_texts_are_cut_to_the_shortest() -> None:
    long = ablate("planted:induction", inputs=["abcabcabc", "xyzxyz", "qrstqrst"], kind="zero")
    cut = ablate("planted:induction", inputs=["abcabc", "xyzxyz", "qrstqr"], kind="zero")
    assert long["components"] == cut["components"]
    assert long["reference"]["meaning"] == "3 texts of 6 tokens"


@pytest.mark.parametrize(
    ("name", "options", "error", "words"),
    [
        ("planted:clock", {"kind": "zeros"}, UnknownNameError, "kind of .* 'zeros': did you mean 'zero'"),
        ("planted:clock", {"kind": ()}, ConfigError, "no kind: give one or more of zero, mean, resample"),
        ("planted:clock", {"by": "chain"}, UnknownNameError, "class scheme 'chain'"),
        ("planted:clock", {"n_inputs": 1}, ConfigError, "2 inputs or more and 1 of each class, not 1 and 200"),
        ("planted:clock", {"per_class": 0}, ConfigError, "per_class takes .* not 0"),
        ("planted:clock", {"inputs": ["1+2"]}, ConfigError, r"has a task, .* leave out 1\+2"),
        ("planted:induction", {"inputs": ["abc"]}, ConfigError, "2 texts or more, .* not 1"),
        ("planted:induction", {"inputs": "abc"}, ConfigError, "2 texts or more, .* not 1"),
        ("planted:induction", {"inputs": ["abc", "a"]}, ConfigError, "1 token predicts nothing"),
        ("planted:induction", {"inputs": ["abc", "AB"]}, VocabularyError, "'A'"),
    ],
)
def test_bad_input_is_one_line(name: str, options: dict, error: type, words: str) -> None:
    with pytest.raises(error, match=words) as raised:
        ablate(name, **options)
    assert "\n" not in str(raised.value)


def test_a_model_that_would_see_the_answer_is_refused() -> None:
    cfg = ModelConfig(d_vocab=14, n_ctx=13, d_model=16, causal=False)
    with pytest.raises(SubjectError, match="not causal"):
        ablate(Subject("all-seeing", build(cfg, 0), Addition(n_digits=3)))


def test_ablation_leaves_the_model_alone() -> None:
    subject = open_subject("planted:carry-adder")
    before = weights_hash(subject.model.state_dict())
    ablate(subject, n_inputs=10, per_class=1)
    assert weights_hash(subject.model.state_dict()) == before


def test_ablate_from_the_command_line(run, tmp_path: Path) -> None:
    out = tmp_path / "ablate.html"
    arguments = ["planted:carry-adder", "--n-inputs", 50, "--per-class", 5]
    code, said, err = run("ablate", *arguments, "--kind", "zero,resample", "--by", "pattern", "--json", "--out", out)
    assert code == 0, err
    found = json.loads(said)
    assert list(found["kinds"]) == ["zero", "resample"]
    assert [panel["panel"] for panel in found["panels"]] == ["overall", "zero by class", "resample by class"]
    assert len(found["panels"][1]["axes"]["class"]) == 27
    assert np.array(found["panels"][1]["accuracy"]).shape == (13, 27)
    assert out.is_file()
    code, said, _ = run("lens", "ablate", "planted:induction", "--input", "abcabc", "--input", "bcdbcd")
    assert code == 0
    assert said.startswith("zero, mean, resample ablation over 2 texts of 6 tokens; without ablation loss ")
    code, _, err = run("ablate", *arguments, "--kind", "zero,nought")
    assert (code, err.count("\n")) == (2, 1)


def test_nothing_is_called_most_needed_where_nothing_is_lost() -> None:
    task = Addition(n_digits=3)
    cfg = ModelConfig(d_vocab=task.d_vocab, n_ctx=task.n_ctx, d_model=16, d_mlp=16, n_layers=1, n_heads=2)
    untrained = ablate(Subject("untrained", build(cfg, 0), task), n_inputs=50, per_class=5, kind="zero")
    assert untrained["baseline"]["accuracy"] == 0
    assert untrained.claim.endswith("most needed head or MLP: none (zero: none makes it worse)")


def test_components_that_are_needed_alike_are_named_together() -> None:
    parts = [{"component": name, "drop": 0.5} for name in ("L0H0", "L0H1", "L1 MLP", "L2H0", "L2H1")]
    for tied, words in (
        (1, "L0H0 (zero: 50.0% right when ablated)"),
        (2, "L0H0 and L0H1 (zero: 50.0% right when ablated)"),
        (5, "L0H0 and others alike (zero: 50.0% right when ablated)"),
    ):
        rows = [part if i < tied else part | {"drop": 0.1} for i, part in enumerate(parts)]
        assert ablation.needed_most(rows, "zero", "drop", {"accuracy": 1.0}) == words
