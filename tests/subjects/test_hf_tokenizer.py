"""Tokenizers of Hugging Face: tokens that look different, names for all of them, and the reason where one is not read.

The reference for how a text becomes tokens, and tokens a text, is `transformers`.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import GPT2Config, PreTrainedTokenizerFast

import algoscope as ag
from algoscope.config import ModelConfig
from algoscope.core.errors import VocabularyError
from algoscope.networks.transformer import Transformer
from algoscope.subjects.hf_tokenizer import TokenizerText, find_tokenizer
from algoscope.subjects.subject import Subject
from algoscope.subjects.text import Numbers
from hf_models import save
from hf_models import tokenizer as byte_level

WORDS = ("The", "city", "of", "Paris", "Rome", "a", "1")
D_VOCAB = 310  # some more than the tokenizers have


def around(made: Tokenizer, template: str | None) -> PreTrainedTokenizerFast:
    """With BOS and EOS where the template has them."""
    if template:
        numbers = [(word, made.token_to_id(word)) for word in ("<s>", "</s>")]
        made.post_processor = processors.TemplateProcessing(single=template, special_tokens=numbers)
    return PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def metaspace(template: str | None = None, scheme: str = "always", fused: bool = False) -> PreTrainedTokenizerFast:
    """As SentencePiece has it: words with and without their space, letters, and the 256 bytes."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁"]
    pieces += [space + word for word in WORDS for space in ("▁", "")] + [*"bcehimorsty"]
    made = Tokenizer(
        models.Unigram([(piece, -float(i > 258)) for i, piece in enumerate(pieces)], 0, byte_fallback=True)
    )
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    plain = [decoders.ByteFallback(), decoders.Metaspace(prepend_scheme=scheme)]
    made.decoder = decoders.Sequence(parts if fused else plain)
    return around(made, template)


def words_only() -> PreTrainedTokenizerFast:
    """Whole words, without a decoder: the library joins them with spaces."""
    made = Tokenizer(models.WordLevel({word: i for i, word in enumerate(("<unk>", "<s>", "</s>", *WORDS))}, "<unk>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return around(made, None)


def known_words_only() -> PreTrainedTokenizerFast:
    """Whole words without a token for others: the library raises at them."""
    made = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, "<unk>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=made)


def pieces_of_words() -> PreTrainedTokenizerFast:
    """As BERT has it: what continues a word begins with two signs, and the library joins and tidies."""
    pieces = ("<unk>", "<s>", "</s>", *WORDS, "##a", "##s", "s", "x")
    made = Tokenizer(models.WordPiece({piece: i for i, piece in enumerate(pieces)}, unk_token="<unk>"))
    made.pre_tokenizer, made.decoder = pre_tokenizers.Whitespace(), decoders.WordPiece()
    return around(made, "<s> $A </s>")


KINDS: dict[str, Callable[[], PreTrainedTokenizerFast]] = {
    "byte level": byte_level,
    "metaspace": metaspace,
    "metaspace, BOS": lambda: metaspace("<s> $A"),
    "metaspace, fused": lambda: metaspace("<s> $A </s>", fused=True),
    "metaspace, no first space": lambda: metaspace(scheme="never"),
    "words": words_only,
    "known words": known_words_only,
    "pieces of words": pieces_of_words,
}


def subject(tokenizer: PreTrainedTokenizerFast) -> Subject:
    torch.manual_seed(0)
    cfg = ModelConfig(d_vocab=D_VOCAB, n_ctx=32, d_model=8, d_mlp=None, n_layers=1)
    return Subject("read", Transformer(cfg), text=TokenizerText(tokenizer, D_VOCAB))


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> Subject:
    return subject(KINDS[request.param]())


# ---------------------------------------------------------------------- labels


def test_every_token_has_a_label_of_its_own_on_one_line(kind: Subject) -> None:
    labels = kind.to_str_tokens(torch.arange(D_VOCAB))
    assert len(set(labels)) == D_VOCAB
    assert all(label.isprintable() and label for label in labels)


def test_a_space_a_byte_and_a_token_beyond_the_tokenizer_are_seen() -> None:
    model = subject(metaspace())
    of = model.text.tokenizer.convert_tokens_to_ids
    shown = {piece: model.text.token(of(piece)) for piece in ("▁a", "a", "▁1", "1", "<0x61>", "▁", "</s>")}
    assert shown == {"▁a": " a", "a": "a", "▁1": " 1", "1": "1", "<0x61>": "<0x61>", "▁": " ", "</s>": "</s>"}
    assert model.text.token(D_VOCAB - 1) == f"<{D_VOCAB - 1}>"


def test_labels_join_to_the_text() -> None:
    for model in (subject(metaspace(scheme="never")), subject(byte_level())):
        assert "".join(model.to_str_tokens(model.to_tokens("The city of Paris")[0])) == "The city of Paris"
    model = subject(metaspace("<s> $A"))
    assert model.to_str_tokens(model.to_tokens("The city of Paris")[0]) == ["<s>", " The", " city", " of", " Paris"]


def test_bytes_that_are_no_character_are_shown_in_hexadecimal() -> None:
    made = Tokenizer(models.BPE())
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<s>", "</s>", "<unk>", "<0xE6>", "<300>", "\n\n"]
    options = {"special_tokens": special, "initial_alphabet": alphabet, "show_progress": False}
    made.train_from_iterator(["京"], trainers.BpeTrainer(vocab_size=len(special) + 256, **options))
    model = subject(around(made, None))
    tokens = model.to_tokens("\n 京\u202e\0")[0]
    assert model.to_str_tokens(tokens)[:2] == ["\\n", " "]
    assert model.to_string(tokens) == "\n 京\u202e\0"
    labels = model.to_str_tokens(torch.arange(D_VOCAB))
    assert len(set(labels)) == D_VOCAB
    assert all(label.isprintable() and label for label in labels)
    assert {"<0x80>", "\\x00", "\\n\\n", "<0xE6>", "<300>"} <= set(labels)
    cut = model.to_tokens("京")[0][:1]
    assert model.to_string(cut).startswith("<0xE4>")


# ---------------------------------------------------------------------- text


@given(text=st.lists(st.sampled_from([*"abcé京🙂 \n1", "The", " city"]), min_size=1, max_size=8).map("".join))
@pytest.mark.parametrize("name", [name for name in KINDS if name != "known words"])
def test_tokens_and_texts_are_those_of_transformers(name: str, text: str) -> None:
    tokenizer = KINDS[name]()
    ours = TokenizerText(tokenizer, D_VOCAB)
    theirs = tokenizer(text)["input_ids"]
    without_end = theirs[:-1] if theirs[-1:] == [tokenizer.eos_token_id] else theirs
    assert ours.encode(text) == without_end
    assert ours.decode(theirs) == tokenizer.decode(theirs, clean_up_tokenization_spaces=False)


def test_a_prompt_ends_with_its_text_though_the_tokenizer_appends_an_end() -> None:
    ended, plain = subject(metaspace("<s> $A </s>")), subject(metaspace("<s> $A"))
    assert torch.equal(ended.to_tokens("The city of"), plain.to_tokens("The city of"))
    assert ended.to_tokens("").tolist() == [[1]]
    assert ended.to_str_tokens(ended.to_tokens("The</s>")[0])[-1] == "</s>", "one that was written stays"
    assert ended.generate("The city of", 4) == plain.generate("The city of", 4)


def test_generated_text_keeps_the_space_before_its_first_word_and_every_token() -> None:
    for tokenizer in (metaspace("<s> $A", fused=True), metaspace()):
        text = TokenizerText(tokenizer, D_VOCAB)
        prompt, new = text.encode("The city"), tokenizer.convert_tokens_to_ids(["▁of", "▁Paris", "<0xE6>"])
        assert text.decode([*new, 305], after=prompt) == " of Paris<0xE6><305>"
    words = TokenizerText(words_only(), D_VOCAB)
    assert words.decode([5, 305, 6], after=words.encode("The city")) == " of<305>Paris"


def test_a_text_ends_where_the_folder_says_and_no_special_token_is_drawn_at_random(tmp_path: Path) -> None:
    save(tmp_path / "g")
    config = GPT2Config.from_pretrained(tmp_path / "g")
    assert find_tokenizer(str(tmp_path / "g"), config, True).end_tokens == {1}
    (tmp_path / "g" / "generation_config.json").write_text(json.dumps({"eos_token_id": [1, 7, 999]}))
    text = find_tokenizer(str(tmp_path / "g"), config, True)
    assert text.end_tokens == {1, 7}
    assert text.special >= {0, 1, 7}
    (tmp_path / "g" / "tokenizer.json").unlink()
    (tmp_path / "g" / "tokenizer_config.json").unlink()
    assert find_tokenizer(str(tmp_path / "g"), config, True).end_tokens == {1, 7}


@pytest.mark.parametrize("name", [name for name in KINDS if name != "known words"])
def test_half_of_a_character_is_refused_and_odd_texts_are_read(name: str) -> None:
    model = subject(KINDS[name]())
    with pytest.raises(VocabularyError, match=r"half of a surrogate pair") as raised:
        model.to_tokens("a\ud800")
    assert "\n" not in str(raised.value)
    for text in ("</s>", "a" * 9, "The"):
        assert model.to_string(model.to_tokens(text)[0])


def test_a_text_of_which_no_tokens_are_made_is_shown() -> None:
    for text in ("", "  "):
        with pytest.raises(VocabularyError, match=f"no tokens in '{text}'"):
            subject(words_only()).to_tokens(text)


# ---------------------------------------------------------------------- one token


def test_every_token_can_be_named_by_its_label(kind: Subject) -> None:
    for number in range(D_VOCAB):
        assert kind.to_single_token(kind.text.token(number)) == number


def test_a_token_is_its_text_its_piece_or_its_number() -> None:
    model = subject(metaspace("<s> $A </s>"))
    of = model.text.tokenizer.convert_tokens_to_ids
    names = {
        " Paris": "▁Paris",
        "Paris": "Paris",
        "▁Paris": "▁Paris",
        "a": "a",
        " a": "▁a",
        "<0x61>": "<0x61>",
        "\n": "<0x0A>",
    }
    for name, piece in names.items():
        assert model.to_single_token(name) == of(piece), name
    number = of("▁Rome")
    for same in (number, f"<{number}>", " Rome"):
        assert model.to_single_token(same) == number


def test_a_word_that_the_tokenizer_does_not_know_is_not_the_token_for_unknown_words() -> None:
    model = subject(words_only())
    assert model.text.token(model.to_single_token("Paris")) == "Paris"
    with pytest.raises(VocabularyError, match="'Berlin' is not in the vocabulary"):
        model.to_single_token("Berlin")


def test_a_text_at_which_the_library_raises_is_one_line_and_its_tokens_have_names() -> None:
    model = subject(known_words_only())
    assert model.generate("The city", 1)
    for ask in (model.to_tokens, model.to_single_token):
        with pytest.raises(VocabularyError, match=r"the tokenizer cannot read 'Berlin': .*WordLevel"):
            ask("Berlin")


@pytest.mark.parametrize(
    ("token", "words"),
    [
        ("The city", "'The city' is 2 tokens of read, not one"),
        (D_VOCAB, f"token {D_VOCAB} is outside the {D_VOCAB} tokens of read"),
        (-1, "token -1 is outside"),
    ],
)
def test_what_is_no_token_is_one_line(token: str | int, words: str) -> None:
    with pytest.raises(VocabularyError, match=words) as raised:
        subject(metaspace()).to_single_token(token)
    assert "\n" not in str(raised.value)


def test_target_and_rival_are_the_tokens_of_the_words_though_an_end_is_appended() -> None:
    model = subject(metaspace("<s> $A </s>"))
    found = ag.lenses.logit(model, "The city of", target=" Paris", rival=" Rome")
    assert set(found["target"]) == {" Paris"}
    assert set(found["rival"]) == {" Rome"}
    patched = ag.lenses.patch(model, "The city of Paris", "The city of Rome", target=" Paris", rival="▁Rome")
    assert (patched["target"], patched["rival"]) == ([" Paris"], [" Rome"])
    by_number = ag.lenses.attribution(model, "The city of", target=model.to_single_token(" Paris"), rival=3)
    assert (by_number["target"], by_number["rivals"]) == (" Paris", ["<0x00>"])


# ---------------------------------------------------------------------- tokenizers that are not read


def write(folder: Path, name: str, content: str | bytes) -> None:
    (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("tokenizer.json", "{not json", "JSONDecodeError"),
        ("tokenizer.json", "{}", "tokenizer.json"),
        ("tokenizer.json", b"\xff\xfe", "UnicodeDecodeError"),
        ("tokenizer_config.json", "[]", "tokenizer_config.json"),
        ("vocab.json", "{}", "vocab.json"),
    ],
)
def test_a_tokenizer_that_cannot_be_read_is_said_when_text_is_needed(
    name: str, content: str | bytes, reason: str, tmp_path: Path
) -> None:
    folder = save(tmp_path / "g", with_tokenizer=False)
    write(folder, name, content)
    model = ag.open(f"hf:{folder}")
    assert model.run(model.to_tokens("5 6"))[0].shape[1] == 2, "token ids need no tokenizer"
    with pytest.raises(VocabularyError, match=f"'hello' is not a token: the tokenizer.*{reason}") as told:
        model.to_tokens("hello")
    assert "\n" not in str(told.value)


def test_a_tokenizer_that_may_not_be_read_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", "tokenizer.json")

    folder = save(tmp_path / "g")
    monkeypatch.setattr("algoscope.subjects.hf_tokenizer.AutoTokenizer.from_pretrained", denied)
    with pytest.raises(VocabularyError, match="Permission denied"):
        ag.open(f"hf:{folder}").to_tokens("hello")


def test_packages_that_a_tokenizer_needs_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save(tmp_path / "g", with_tokenizer=False)
    write(folder, "tokenizer.model", b"\x00")
    monkeypatch.setattr("algoscope.subjects.hf_tokenizer.READERS", {"sentencepiece": lambda: False})
    with pytest.raises(VocabularyError, match="pip install sentencepiece"):
        ag.open(f"hf:{folder}").to_tokens("hello")


def test_code_in_the_folder_of_a_tokenizer_is_not_run(tmp_path: Path) -> None:
    folder = save(tmp_path / "g", with_tokenizer=False)
    write(folder, "tokenizer_config.json", json.dumps({"auto_map": {"AutoTokenizer": ["odd.Odd", None]}}))
    write(folder, "odd.py", f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Odd: pass\n")
    with pytest.raises(VocabularyError, match="could not be read"):
        ag.open(f"hf:{folder}").to_tokens("hello")
    assert not (tmp_path / "ran").exists()
    assert "odd" not in sys.modules


def test_a_tokenizer_larger_than_the_model_is_told_where_its_token_is_met() -> None:
    text = TokenizerText(metaspace(), 262)
    assert text.encode("The") == [260]
    with pytest.raises(VocabularyError, match=r"Paris' is token 266 of the tokenizer, but the model has only 262"):
        text.encode("The Paris")


@given(word=st.text(st.sampled_from("0123456789+-_.٣²eE "), max_size=6) | st.just("9" * 5000))
def test_numbers_read_token_ids_and_nothing_else(word: str) -> None:
    text = Numbers(61)
    fits = all(one in [str(i).zfill(len(one)) for i in range(61)] for one in word.split())
    if fits:
        assert text.encode(word) == [int(one) for one in word.split()]
    else:
        with pytest.raises(VocabularyError, match="is not a token: this model has no tokenizer"):
            text.encode(word)
