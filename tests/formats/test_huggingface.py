"""Models of Hugging Face: the same numbers, every site, and one line for what cannot be opened."""

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import algoscope as ag
from algoscope.core.errors import AlgoscopeError, CheckpointError, SubjectError, TaskMismatchError, VocabularyError
from algoscope.core.sites import KINDS
from algoscope.networks.kv_cache import KeyValueCache
from algoscope.subjects._hf_families import FAMILIES
from algoscope.subjects.edits import Add
from algoscope.subjects.huggingface import convert
from algoscope.subjects.subject import Subject
from algoscope.subjects.text import Numbers
from hf_models import CONFIGS, D_VOCAB, MORE, make, save


def subject(family: str, seed: int = 0) -> Subject:
    return Subject(family, convert(make(family, seed)), text=Numbers(D_VOCAB))


def draw(n: int, length: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(D_VOCAB, (n, length), generator=torch.Generator().manual_seed(seed))


def closeness(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return float((ours - theirs).abs().max() / theirs.abs().max())


def test_every_supported_family_is_checked() -> None:
    assert {config.model_type for config in (CONFIGS | MORE).values()} == set(FAMILIES)


@pytest.mark.parametrize("family", CONFIGS)
@given(seed=st.integers(0, 1000), n=st.integers(1, 3), length=st.integers(1, 40))
def test_logits_are_those_of_transformers(family: str, seed: int, n: int, length: int) -> None:
    source, tokens = make(family, seed), draw(n, length, seed)
    with torch.no_grad():
        theirs = source(tokens).logits
    assert closeness(Subject(family, convert(source), text=Numbers(D_VOCAB)).run(tokens)[0], theirs) < 1e-5


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("family", CONFIGS)
def test_padded_batches_give_the_logits_of_transformers(family: str, side: str) -> None:
    source, tokens, lengths = make(family), draw(4, 12), torch.tensor([12, 7, 3, 1])
    place = torch.arange(12)
    mask = (place < lengths[:, None]) if side == "right" else (place >= 12 - lengths[:, None])
    ours = subject(family).run(tokens, attention_mask=mask)[0]
    positions = (mask.long().cumsum(1) - 1).clamp(min=0)
    with torch.no_grad():
        theirs = source(tokens, attention_mask=mask.long(), position_ids=positions).logits
    assert closeness(ours[mask], theirs[mask]) < 1e-5
    assert ours.isfinite().all()
    alone = subject(family).run(tokens[1:2, mask[1]])[0]
    assert closeness(ours[1:2, mask[1]], alone) < 1e-5, "padding changes nothing"


@pytest.mark.parametrize("family", CONFIGS)
def test_every_site_can_be_read_and_an_edit_there_changes_the_output(family: str) -> None:
    model, tokens = subject(family), draw(2, 9)
    plain, cache = model.run(tokens)[0], model.run_with_cache(tokens)[1]
    noise = torch.Generator().manual_seed(1)
    for site in model.sites:
        value = torch.rand(cache[site.name].shape[1:], generator=noise)
        edit = Add(site.name, value=value)
        changed, _ = model.run(tokens, edits=[edit])
        assert (changed - plain).abs().max() > 1e-4, site
        torch.testing.assert_close(model.run_each(tokens, [edit])[0], changed, rtol=1e-4, atol=1e-4)
    assert torch.equal(model.run(tokens)[0], plain)


@pytest.mark.parametrize("family", CONFIGS)
def test_sweeps_equal_full_runs(family: str) -> None:
    model, tokens = subject(family).to_dtype(torch.float64), draw(2, 9)
    donor = model.run_with_cache(draw(2, 9, seed=1))[1]
    edits = [
        ag.Patch(site.name, value=donor[site.name], pos=None if "query" in KINDS[site.kind].shape else 4)
        for site in model.sites
    ]
    plain = model.run_each(tokens, edits, at=slice(-1, None), incremental=False)
    fast = model.run_each(tokens, edits, at=slice(-1, None))
    assert closeness(fast, plain) < 1e-10


@pytest.mark.parametrize("family", CONFIGS)
def test_generation_with_a_cache_is_generation_without(family: str) -> None:
    model, source = subject(family), make(family)
    tokens, lengths = draw(4, 12), torch.tensor([12, 9, 5, 1])
    mask = torch.arange(12) >= 12 - lengths[:, None]
    with_cache = model.generate_tokens(tokens, 8, attention_mask=mask)
    assert torch.equal(with_cache, model.generate_tokens(tokens, 8, use_cache=False, attention_mask=mask))
    options = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    for row, own, new in zip(tokens, mask, with_cache, strict=True):
        alone = row[own][None]
        theirs = source.generate(alone, attention_mask=torch.ones_like(alone), **options)
        assert torch.equal(theirs[0, own.sum() :], new), "each prompt as if it stood alone"


@pytest.mark.parametrize("family", CONFIGS)
def test_logits_step_by_step_are_those_of_one_run(family: str) -> None:
    model, tokens = subject(family).model, draw(3, 10)
    mask = torch.arange(10) >= torch.tensor([[0], [2], [5]])
    whole = model(tokens, mask=mask)
    cache = KeyValueCache()
    steps = [model(tokens[:, :6], cache=cache, mask=mask[:, :6])]
    steps += [model(tokens[:, i : i + 1], cache=cache, mask=mask[:, : i + 1]) for i in range(6, 10)]
    assert closeness(torch.cat(steps, dim=1)[mask], whole[mask]) < 1e-5


# ---------------------------------------------------------------------- opening


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("hf") / "gpt2")


def test_a_folder_opens_with_its_tokenizer_and_its_weights_as_they_are(folder: Path) -> None:
    model = ag.open(f"hf:{folder}")
    text = "The capital of France is"
    tokens = model.to_tokens(text)
    assert model.to_string(tokens[0]) == text
    assert "".join(model.to_str_tokens(tokens[0])) == text
    source = make("gpt2")
    assert torch.equal(model.token_embedding(), source.transformer.wte.weight)
    with torch.no_grad():
        assert closeness(model(tokens), source(tokens).logits) < 1e-5
    assert len(model.generate_many([text, "The"], 3)) == 2


def test_without_a_tokenizer_texts_are_token_numbers(tmp_path: Path) -> None:
    model = ag.open(f"hf:{save(tmp_path / 'bare', 'qwen3', with_tokenizer=False)}")
    assert model.to_tokens("5 60 0").tolist() == [[5, 60, 0]]
    with pytest.raises(VocabularyError, match=r"'61'.*0 to 60"):
        model.to_tokens("5 61")


def test_what_needs_a_task_says_so_in_one_line(folder: Path) -> None:
    model = ag.open(f"hf:{folder}")
    for ask in (lambda: ag.certify(model), lambda: ag.lenses.answers(model)):
        with pytest.raises(TaskMismatchError, match="free text"):
            ask()


def damaged(folder: Path, how: str) -> None:
    weights = folder / "model.safetensors"
    config = json.loads((folder / "config.json").read_text())
    if how == "truncated":
        weights.write_bytes(weights.read_bytes()[:1000])
    elif how == "no weights":
        weights.unlink()
    elif how == "another architecture":
        (folder / "config.json").write_text(json.dumps(config | {"model_type": "bloom"}))
    elif how == "an unknown architecture":
        (folder / "config.json").write_text(json.dumps(config | {"model_type": "brontosaurus"}))
    elif how == "an activation":
        (folder / "config.json").write_text(json.dumps(config | {"activation_function": "mish"}))
    elif how == "more layers than weights":
        (folder / "config.json").write_text(json.dumps(config | {"n_layer": 4}))
    else:
        (folder / "config.json").write_text("{")


@pytest.mark.parametrize(
    ("how", "error", "words"),
    [
        ("truncated", CheckpointError, "cannot be read"),
        ("no weights", CheckpointError, "cannot be read"),
        ("another architecture", SubjectError, "'bloom' is not supported; supported: gpt2, gpt_neox, llama"),
        ("an unknown architecture", SubjectError, "brontosaurus"),
        ("an activation", SubjectError, "'mish' is not supported"),
        ("more layers than weights", CheckpointError, "weights are missing"),
        ("no JSON", SubjectError, "config"),
    ],
)
def test_a_damaged_folder_is_one_line(how: str, error: type[AlgoscopeError], words: str, tmp_path: Path) -> None:
    damaged(save(tmp_path / "model", with_tokenizer=False), how)
    with pytest.raises(error, match=words) as raised:
        ag.open(f"hf:{tmp_path / 'model'}")
    assert "\n" not in str(raised.value)


def test_a_model_that_is_not_there_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for name in (f"hf:{tmp_path / 'nowhere'}", "hf:nobody/nothing"):
        with pytest.raises(SubjectError, match="no model at hf:"):
            ag.open(name)


def test_tokens_outside_the_vocabulary_or_the_context() -> None:
    model = subject("gpt2")
    with pytest.raises(VocabularyError, match="token 61 is outside the 61 tokens"):
        model.run(torch.tensor([[0, 61]]))
    with pytest.raises(VocabularyError, match="65 tokens are more than the context"):
        model.run(draw(1, 65))
    with pytest.raises(VocabularyError, match="5 tokens and 61 new"):
        model.generate_tokens(draw(1, 5), 61)
