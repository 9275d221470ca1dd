"""A folder exported to Hugging Face has its tokenizer: texts are read there as they are here."""

import itertools
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import algoscope as ag
from algoscope.config import ModelConfig
from algoscope.core.errors import VocabularyError
from algoscope.networks.build import build
from algoscope.subjects.subject import Subject
from algoscope.subjects.text import Letters, Numbers
from algoscope.tasks.base import Task
from hf_models import SENTENCES, save


class Turned(ag.Task):
    """Words, written with spaces between them."""

    vocabulary = ("left", "right", "=", "<EOS>")

    def prompts(self) -> list[tuple[str, ...]]:
        return [(*words, "=") for words in itertools.product(("left", "right"), repeat=3)]

    def answer(self, prompt: tuple[str, ...]) -> list[str]:
        return [*prompt[-2::-1], "<EOS>"]


TASKS = [
    ag.Addition(n_digits=2), ag.Modular(p=13), ag.Copying(length=12), ag.Reversal(length=3), ag.Group(group="S3"),
    Turned(),
]  # fmt: skip


def of_task(task: Task) -> Subject:
    cfg = ModelConfig(d_vocab=task.d_vocab, n_ctx=task.n_ctx, d_model=8, n_heads=2, act_fn="gelu_tanh", attn_bias=True)
    return Subject("mine", build(cfg, seed=0), task)


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.kind)
def test_the_vocabulary_of_a_task_is_its_tokenizer(task: Task, tmp_path: Path) -> None:
    ours = of_task(task)
    ag.export(ours, "huggingface", tmp_path / "out")
    opened, tokenizer = ag.open(f"hf:{tmp_path / 'out'}"), AutoTokenizer.from_pretrained(tmp_path / "out")
    for row in task.edge_inputs()[:5]:
        text = task.decode(row.tolist())
        assert tokenizer(text)["input_ids"] == row.tolist()
        assert tokenizer.decode(row) == text
        prompt = task.decode(row[: task.prompt_length].tolist())
        assert opened.to_tokens(prompt).tolist() == ours.to_tokens(prompt).tolist()
        assert opened.generate(prompt).lstrip().startswith(ours.generate(prompt))
    assert opened.text.labels == ours.text.labels
    assert opened.text.end_tokens == ours.text.end_tokens
    with pytest.raises(VocabularyError, match="not in the vocabulary"):
        opened.to_tokens("1§2")


def test_the_library_ends_where_we_end(tmp_path: Path) -> None:
    ours = of_task(ag.Addition(n_digits=2))
    ours.model.embed.weight.data[12] *= 0.0
    ours.model.ln_final.bias.data[:] = 0.0
    ours.model.ln_final.weight.data[:] = 0.0  # all logits are equal: token 0 for ever
    ag.export(ours, "huggingface", tmp_path / "out")
    settings = AutoModelForCausalLM.from_pretrained(tmp_path / "out").generation_config
    assert settings.eos_token_id == [12]


def test_letters_have_a_tokenizer_and_numbers_have_none(tmp_path: Path) -> None:
    cfg = ModelConfig(d_vocab=6, n_ctx=8, d_model=8, n_heads=2, act_fn="gelu_tanh", attn_bias=True)
    letters = Subject("letters", build(cfg, seed=0), text=Letters("abc.\\é"))
    ag.export(letters, "huggingface", tmp_path / "letters")
    assert ag.open(f"hf:{tmp_path / 'letters'}").to_tokens("a.\\é").tolist() == [[0, 3, 4, 5]]
    written = ag.export(Subject("numbers", letters.model, text=Numbers(6)), "huggingface", tmp_path / "numbers")
    assert {path.name for path in written} == {"model.safetensors", "config.json"}


def test_a_tokenizer_of_hugging_face_goes_with_its_model(tmp_path: Path) -> None:
    first = ag.open(f"hf:{save(tmp_path / 'first')}")
    ag.export(first, "huggingface", tmp_path / "second")
    second = ag.open(f"hf:{tmp_path / 'second'}")
    for text in SENTENCES:
        assert torch.equal(first.to_tokens(text), second.to_tokens(text))
        assert first.generate(text, 5) == second.generate(text, 5)
    assert first.text.end_tokens == second.text.end_tokens


def test_the_command_says_where_the_tokenizer_stays_behind(run, tmp_path: Path) -> None:
    folder = save(tmp_path / "model")
    for to, out, left in (("huggingface", "out", False), ("transformerlens", "out.safetensors", True)):
        code, said, _ = run("export", f"hf:{folder}", "--to", to, "--out", tmp_path / out)
        assert (code, said.endswith("; its tokenizer is not among them\n")) == (0, left)
