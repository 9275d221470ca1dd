"""Positions by digit: the ids by hand, and the same ids wherever the model is called."""

from pathlib import Path

import pytest
import torch

import algoscope as ag
from algoscope.config import DataConfig, ModelConfig, RunConfig, override
from algoscope.core.errors import AlgoscopeError, ConfigError, Interrupted, TaskMismatchError, UnknownNameError
from algoscope.data import WidthBatches, batches, held_out, seeded
from algoscope.networks.build import build
from algoscope.networks.digit_positions import at_width_of, n_offsets, position_ids, random_position_ids
from algoscope.networks.shared_prefixes import plain_logits, shared_logits
from algoscope.recipes.addition import add3, add20
from algoscope.recipes.copying import copy26
from algoscope.subjects.subject import Subject
from algoscope.tasks.digits.addition import Addition
from interrupted import interrupt_at, without_times

CPU = torch.device("cpu")
BY_DIGIT = ("coupled", "abacus")


def model_config(positions: str, n_digits: int = 2, n_ids: int = 9) -> ModelConfig:
    task = Addition(n_digits=n_digits)
    return ModelConfig(
        d_vocab=task.d_vocab, n_ctx=task.n_ctx, d_model=16, n_heads=2, positions=positions, n_ids=n_ids,
        init_embed_std=1.0,
    )  # fmt: skip


def tiny(positions: str = "coupled", **settings: object) -> RunConfig:
    fields = {"model.positions": positions, "model.d_mlp": 16, "data.n_test": 40, "train.eval_every": 4}
    if positions in BY_DIGIT:
        fields["model.n_ids"] = 12
    else:
        fields |= {"model.n_ids": None, "model.n_ctx": 22}
    return override(add20(), {"n_digits": 4, "steps": 12, "batch": 8, "d_model": 16, **fields, **settings})


# ---------------------------------------------------------------------- ids


def test_significance_counts_from_the_units() -> None:
    # 4 2 + 1 3 = 5 5 0 EOS, the sum units first
    assert Addition(n_digits=2).significance == (2, 1, 0, 2, 1, 0, 1, 2, 3, 0)
    assert Addition(n_digits=2, reversed=False).significance == (2, 1, 0, 2, 1, 0, 3, 2, 1, 0)
    assert Addition(n_digits=2, operands_reversed=True).significance == (1, 2, 0, 1, 2, 0, 1, 2, 3, 0)


def test_ids_by_hand() -> None:
    task = Addition(n_digits=2)
    coupled, abacus = model_config("coupled"), model_config("abacus")
    assert position_ids(coupled, task, 0).tolist() == [2, 1, 0, 2, 1, 0, 1, 2, 3, 0]
    assert position_ids(coupled, task, 4).tolist() == [6, 5, 4, 6, 5, 4, 5, 6, 7, 4]
    assert position_ids(abacus, task, 4).tolist() == [6, 5, 0, 6, 5, 0, 5, 6, 7, 0]
    assert (
        position_ids(coupled, task).tolist() == position_ids(coupled, task, 2).tolist()
    )  # 6 offsets, 0 to 5: the lower middle
    assert position_ids(add3().model, task) is None


@pytest.mark.parametrize("positions", BY_DIGIT)
@pytest.mark.parametrize("width", [1, 2, 7])
def test_the_token_that_predicts_a_digit_of_the_sum_knows_its_place(positions: str, width: int) -> None:
    """Coupled: the digits to add next stand one above it. Abacus: the same from the first digit of the sum on."""
    task = Addition(n_digits=width)
    ids = position_ids(model_config(positions, width), task, 1).tolist()
    units_up = [ids[width - 1 - column] for column in range(width)]
    assert units_up == [ids[2 * width - column] for column in range(width)]
    predicting = ids[task.answer_slice][:width]
    if positions == "coupled":
        assert [id_ + 1 for id_ in predicting] == units_up
    else:
        assert [predicting[0], *(id_ + 1 for id_ in predicting[1:])] == [0, *units_up[1:]]


@pytest.mark.parametrize("positions", BY_DIGIT)
def test_offsets_in_training_are_drawn_for_each_input_and_reach_every_row(positions: str) -> None:
    cfg, task = model_config(positions), Addition(n_digits=2)
    assert n_offsets(cfg, task) == 6
    drawn = random_position_ids(cfg, task, 400, seeded(CPU, 1))
    assert drawn.shape == (400, 10)
    assert set(drawn[:, 1].tolist()) == {1, 2, 3, 4, 5, 6}
    for row in drawn[:20]:
        assert torch.equal(row, position_ids(cfg, task, int(row[1]) - 1))
    assert torch.equal(drawn, random_position_ids(cfg, task, 400, seeded(CPU, 1)))


def test_only_the_rows_decide_and_not_the_offset() -> None:
    """A table whose rows are moved by as much as the offset gives the same logits; the wrong offset does not."""
    cfg, task = model_config("coupled"), Addition(n_digits=2)
    model = build(cfg, 0).double()
    tokens = task.sample(5, seeded(CPU, 0))[:, :-1]
    said = model(tokens, position_ids=position_ids(cfg, task, 1))
    assert model.pos_embed is not None
    model.pos_embed.weight.data = model.pos_embed.weight.data.roll(3, dims=0)
    torch.testing.assert_close(model(tokens, position_ids=position_ids(cfg, task, 4)), said, atol=1e-12, rtol=0)
    assert (model(tokens, position_ids=position_ids(cfg, task, 1)) - said).abs().max() > 0.1
    each = torch.stack([position_ids(cfg, task, 4), position_ids(cfg, task, 1)])
    both = model(tokens[:2], position_ids=each)
    torch.testing.assert_close(both[:1], said[:1], atol=1e-12, rtol=0)
    torch.testing.assert_close(
        both[1:], model(tokens[1:2], position_ids=position_ids(cfg, task, 1)), atol=1e-12, rtol=0
    )


# ---------------------------------------------------------------------- one place, every caller


@pytest.mark.parametrize("positions", BY_DIGIT)
@pytest.mark.parametrize("width", [2, 5])
def test_every_way_to_call_a_subject_agrees(positions: str, width: int) -> None:
    task = Addition(n_digits=width)
    subject = Subject("model", build(model_config(positions), 3), task).to_dtype(torch.float64)
    tokens = task.sample(30, seeded(CPU, 0))
    tokens = tokens[task.keys(tokens).sort().indices]
    reference = build(model_config(positions), 3).double()(
        tokens[:, :-1], at=task.answer_slice, position_ids=position_ids(model_config(positions), task)
    )
    ways = {
        "run": subject.run(tokens[:, :-1], at=task.answer_slice)[0],
        "answers": subject.answer_logits(tokens),
        "plain": plain_logits(subject.model, tokens[:, :-1], task.answer_slice),
        "shared": shared_logits(subject.model, tokens[:, :-1], task.answer_slice),
        "sweep": subject.run_each(tokens[:, :-1], [ag.Add("pos_embed", value=torch.zeros(16))], at=task.answer_slice)[
            0
        ],
    }
    for way, logits in ways.items():
        torch.testing.assert_close(logits, reference, atol=1e-10, rtol=0, msg=way)
    folded = subject.folded()[0].answer_logits(tokens)
    torch.testing.assert_close(folded.log_softmax(-1), reference.log_softmax(-1), atol=1e-10, rtol=0)
    prompts = tokens[:, : task.prompt_length]
    cached = subject.generate_tokens(prompts, width + 2)
    assert torch.equal(cached, subject.generate_tokens(prompts, width + 2, use_cache=False))
    assert subject.position_embedding().shape == (task.n_ctx, 16)


@pytest.mark.parametrize("positions", BY_DIGIT)
def test_certify_counts_what_decoding_gets_wrong(positions: str) -> None:
    task = Addition(n_digits=1)
    subject = Subject("model", build(model_config(positions), 3), task)
    tokens = task.at(torch.arange(100))
    said = subject.generate_tokens(tokens[:, : task.prompt_length], 3)
    wrong = int((said != tokens[:, task.prompt_length :]).any(dim=1).sum())
    assert ag.certify(subject)["wrong"] == wrong


# ---------------------------------------------------------------------- widths in training


def test_a_batch_has_one_width_drawn_from_seed_and_step() -> None:
    task, data = Addition(n_digits=4), DataConfig(shortest=2, n_test=100)
    test = held_out(task, data, 0, CPU)
    source = batches(task, data, 16, 3, test)
    assert isinstance(source, WidthBatches)
    widths = [source.task_at(step).width for step in range(120)]
    assert {width: widths.count(width) > 20 for width in (2, 3, 4)} == {2: True, 3: True, 4: True}
    again = batches(task, data, 16, 3, test)
    for step in (7, 0, 119):
        at, tokens = source.task_at(step), source.batch(step)
        assert tokens.shape == (16, 3 * widths[step] + 4)
        assert torch.equal(tokens, at.sequences(*at.operands(tokens)))
        assert torch.equal(again.batch(step), tokens)
    longest = torch.cat([source.batch(step) for step in range(120) if widths[step] == 4])
    assert not torch.isin(task.keys(longest), task.keys(test)).any()


@pytest.mark.parametrize("positions", [*BY_DIGIT, "learned"])
def test_a_resumed_run_with_widths_equals_an_uninterrupted_one(
    positions: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = ag.train(tiny(positions), name="whole", runs_dir=tmp_path, progress=False)
    with monkeypatch.context() as patch:
        interrupt_at(patch, 6)
        with pytest.raises(Interrupted):
            ag.train(tiny(positions), name="part", runs_dir=tmp_path, progress=False)
    part = ag.train(tiny(positions), name="part", runs_dir=tmp_path, progress=False, resume=True)
    assert part.summary.weights_sha256 == whole.summary.weights_sha256
    assert without_times(part) == without_times(whole)


def test_parts_of_a_batch_keep_their_own_offsets(tmp_path: Path) -> None:
    one = ag.train(tiny(), name="one", runs_dir=tmp_path, progress=False)
    three = ag.train(tiny(**{"train.accumulate": 3}), name="three", runs_dir=tmp_path, progress=False)
    assert three.metrics()[0]["loss"] == pytest.approx(one.metrics()[0]["loss"], abs=1e-4)


# ---------------------------------------------------------------------- asked another question


def test_a_run_opens_at_other_widths(tmp_path: Path, run) -> None:
    ag.train(tiny(), name="small", runs_dir=tmp_path, progress=False)
    subject = ag.open("run:small?n_digits=7", runs_dir=tmp_path)
    assert (subject.task.width, subject.cfg.n_ctx, subject.origin) == (7, 25, None)
    assert subject.weights_sha256 == ag.open("run:small", runs_dir=tmp_path).weights_sha256
    assert subject.lay_out("1234567+1").tokens.shape == (1, 24)
    verdict = ag.certify(subject, sample=20)
    assert verdict["domain"]["size"] == 10**14
    assert verdict["note"] == "evaluated with n_digits=7, which it was not trained on"
    assert "note" not in ag.certify(ag.open("run:small", runs_dir=tmp_path), sample=20).facts
    assert ag.open("run:small?n_digits=2", runs_dir=tmp_path).note == "evaluated with n_digits=2"
    assert ag.lenses.attention(subject, ["1234567+7654321"]).panels
    assert ag.open("run:small@0?n_digits=1&reversed=false", runs_dir=tmp_path).task == Addition(
        n_digits=1, reversed=False
    )
    code, out, _ = run("generate", "run:small?n_digits=10", "1234567890+1", "--runs-dir", tmp_path)
    assert (code, len(out) > 0) == (0, True)


@pytest.mark.parametrize(
    ("name", "error", "words"),
    [
        ("run:small?n_digits=11", TaskMismatchError, "12 coupled positions.*needs 13"),
        ("run:small?n_digit=5", UnknownNameError, "n_digits"),
        ("run:small?n_digits=999", ConfigError, "n_digits.*200"),
        ("run:small?n_digits=five", ConfigError, "five"),
        ("run:far?n_digits=7", TaskMismatchError, "learned positions for 22 tokens.*24.*model.n_ctx=25"),
        ("run:copy?n_symbols=9", TaskMismatchError, "another vocabulary"),
    ],
)
def test_questions_that_cannot_be_asked_are_one_line(
    name: str, error: type[AlgoscopeError], words: str, tmp_path: Path
) -> None:
    ag.Run.create(tmp_path / "small", tiny()).save_checkpoint(0, build(tiny().model, 0).state_dict(), {})
    ag.Run.create(tmp_path / "far", tiny("learned")).save_checkpoint(
        0, build(tiny("learned").model, 0).state_dict(), {}
    )
    ag.Run.create(tmp_path / "copy", copy26()).save_checkpoint(0, build(copy26().model, 0).state_dict(), {})
    with pytest.raises(error, match=words) as raised:
        ag.open(name, runs_dir=tmp_path)
    assert "\n" not in str(raised.value)


def test_learned_positions_reach_as_far_as_their_table(tmp_path: Path) -> None:
    ag.Run.create(tmp_path / "far", tiny("learned")).save_checkpoint(
        0, build(tiny("learned").model, 0).state_dict(), {}
    )
    subject = ag.open("run:far?n_digits=6", runs_dir=tmp_path)
    assert subject.task.width == 6
    assert "; its positions from 15 on were never trained" in subject.note


# ---------------------------------------------------------------------- what makes no sense


@pytest.mark.parametrize(
    ("base", "settings", "words"),
    [
        (copy26, {"model.positions": "coupled"}, "coupled.*copying has none"),
        (add20, {"model.n_ids": 21}, "n_ids 21 is below the 22"),
        (add3, {"model.n_ids": 30}, "n_ids 30 is for positions coupled and abacus, not learned"),
        (copy26, {"data.shortest": 2}, "copying has no width"),
        (add20, {"data.shortest": 21}, "21 exceeds the width of the task, 20"),
        (add3, {"data.shortest": 1, "data.source": "fixed"}, "a fixed set has one width"),
    ],
)
def test_configs_that_make_no_sense_are_one_line(base, settings: dict, words: str) -> None:
    with pytest.raises(ConfigError, match=words) as raised:
        override(base(), settings)
    assert "\n" not in str(raised.value)


def test_a_bare_model_needs_to_be_told_its_ids() -> None:
    model = build(model_config("coupled"), 0)
    with pytest.raises(ConfigError, match="open it as a subject"):
        model(torch.zeros(1, 3, dtype=torch.long))
    assert at_width_of(model, Addition(n_digits=2))(torch.zeros(1, 3, dtype=torch.long)).shape == (1, 3, 14)
    assert model.position_ids is None


def test_old_configs_are_as_they_were() -> None:
    plain = add3().model_dump()
    del plain["model"]["n_ids"], plain["data"]["shortest"]
    assert RunConfig.model_validate(plain) == add3()
