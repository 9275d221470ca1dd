"""Tokenizers of Hugging Face: every token has a label of its own, and none is silently left out of a text."""

import codecs
import json
import re
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from transformers import (
    AutoTokenizer,
    GenerationConfig,
    PretrainedConfig,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)
from transformers.utils.import_utils import is_protobuf_available, is_sentencepiece_available

from algoscope.core.errors import SubjectError, VocabularyError, shown
from algoscope.subjects.text import Numbers, Text, distinct

FILES = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json", "vocab.txt", "merges.txt")
PLAIN = {"ByteLevel", "Metaspace", "Replace", "ByteFallback", "Fuse", "Strip"}  # decoders that join what tokens say
BYTE = re.compile("<0x([0-9A-F]{2})>")  # how SentencePiece writes a token of one byte
READERS = {"sentencepiece": is_sentencepiece_available, "protobuf": is_protobuf_available}  # of tokenizer.model
SAMPLES = ("a", "0", " the", ".")  # texts of which every tokenizer makes tokens of at least one

_SAME = (*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100))
_OTHERS = [byte for byte in range(256) if byte not in _SAME]
BYTES = dict.fromkeys(_OTHERS, "\uffff") | {256 + i: chr(byte) for i, byte in enumerate(_OTHERS)}
"""Characters of byte-level tokens to those of Latin-1 whose numbers are the bytes (as in GPT-2); others have none."""


def _shown_bytes(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeDecodeError)
    return "".join(f"<0x{byte:02X}>" for byte in error.object[error.start : error.end]), error.end


codecs.register_error("algoscope.bytes", _shown_bytes)


class TokenizerText(Text):
    """A Hugging Face tokenizer, for a model of `d_vocab` tokens. `ends`: its end tokens; None: the tokenizer's.

    A prompt ends where its text ends: the tokens that some tokenizers put after every text, such as an end of sequence,
    are left off, as a prediction after them says nothing about the text.
    """

    def __init__(self, tokenizer: Any, d_vocab: int, ends: Iterable[int] | None = None) -> None:
        self.tokenizer, self.d_vocab = tokenizer, d_vocab
        self._pieces: dict[int, str] = {number: piece for piece, number in tokenizer.get_vocab().items()}
        known = [tokenizer.eos_token_id] if ends is None else ends
        self.end_tokens = frozenset(end for end in known if end is not None)
        beyond = (number for number in range(d_vocab) if number not in self._pieces)
        self.special = self.end_tokens.union(tokenizer.all_special_ids, beyond)
        self._n_after = 0
        for text in SAMPLES:
            inner = self._ids(text, with_special=False)
            if inner:
                whole = self._ids(text)
                starts = range(len(whole) - len(inner) + 1)
                start = next((i for i in starts if whole[i : i + len(inner)] == inner), starts[-1])
                self._n_after = len(whole) - len(inner) - start
                break

    # ------------------------------------------------------------------ text to tokens

    def encode(self, text: str) -> list[int]:
        ids = self._ids(text)
        ids = ids[: len(ids) - self._n_after]
        beyond = next((number for number in ids if number >= self.d_vocab), None)
        if beyond is not None and beyond == self.tokenizer.unk_token_id:
            raise VocabularyError(f"{text!r} has a part that is not in the vocabulary of the tokenizer")
        if beyond is not None:
            raise VocabularyError(
                f"{self._pieces[beyond]!r} is token {beyond} of the tokenizer, but the model has only {self.d_vocab}: "
                "the tokenizer is that of another model; leave it out"
            )
        return ids

    def _ids(self, text: str, with_special: bool = True) -> list[int]:
        half = re.search("[\ud800-\udfff]", text)
        if half:
            raise VocabularyError(
                f"{half[0]!r} at character {half.start() + 1} of {text!r} is half of a surrogate pair, which is no "
                "character: leave it out"
            )
        try:
            return list(self.tokenizer(text, add_special_tokens=with_special, verbose=False)["input_ids"])
        except Exception as error:  # such as a word that is not in a vocabulary without a token for unknown ones
            raise VocabularyError(f"the tokenizer cannot read {text!r}: {_reason(error)}") from error

    def files(self, d_vocab: int) -> dict[str, bytes | str]:
        with tempfile.TemporaryDirectory() as folder:
            self.tokenizer.save_pretrained(folder)
            return {path.name: path.read_bytes() for path in sorted(Path(folder).iterdir()) if path.is_file()}

    def find(self, text: str) -> list[int]:
        try:
            ids = self._ids(text, with_special=False)
        except VocabularyError:  # its label and its piece need not be texts that the tokenizer reads
            if text in self._named:
                return [self._named[text]]
            raise
        if len(ids) == 1 and self._text_of(ids[0]) == text:
            return ids
        if text in self._named:
            return [self._named[text]]
        if ids == [self.tokenizer.unk_token_id]:
            raise VocabularyError(f"{text!r} is not in the vocabulary of the tokenizer")
        return ids

    @cached_property
    def _named(self) -> dict[str, int]:
        """Tokens by their text, label, piece, and number in angle brackets: of equal names the first in this order."""
        named: dict[str, int] = {}
        texts = {number: self._text_of(number) for number in self._pieces}
        plain = {number: text for number, text in texts.items() if not BYTE.fullmatch(self._pieces[number])}
        numbers = {number: f"<{number}>" for number in range(self.d_vocab)}
        for names in (plain, dict(enumerate(self.labels)), self._pieces, texts, numbers):
            for number, name in names.items():
                named.setdefault(name, number)
        return named

    # ------------------------------------------------------------------ tokens to text

    def decode(self, ids: Sequence[int], after: Sequence[int] = ()) -> str:
        if self._bytes is not None:
            text = _joined(self._bytes, ids)
            return text if after else re.sub(f"^ {{0,{self._n_stripped}}}", "", text)
        whole, before = self._decoded([*after, *ids]), self._decoded(after)
        return whole[len(before) :] if whole.startswith(before) else self._decoded(ids)

    def _decoded(self, ids: Sequence[int]) -> str:
        """The text as the library has it, and tokens beyond the tokenizer as their numbers."""
        text = ""
        for known, run in groupby(ids, key=self._pieces.__contains__):
            numbers = list(run)
            text += (
                str(self.tokenizer.decode(numbers, clean_up_tokenization_spaces=False))
                if known
                else "".join(f"<{number}>" for number in numbers)
            )
        return text

    def _text_of(self, number: int) -> str:
        """What a token adds to a text, or its piece where that depends on the tokens around it."""
        return self._pieces[number] if self._bytes is None else _joined(self._bytes, [number])

    @cached_property
    def labels(self) -> tuple[str, ...]:
        return distinct(self._label(number) for number in range(self.d_vocab))

    def _label(self, number: int) -> str:
        piece = self._pieces.get(number)
        if piece is None:
            return f"<{number}>"
        return piece if BYTE.fullmatch(piece) else self._text_of(number)

    @cached_property
    def _decoders(self) -> list[dict[str, Any]]:
        """The decoders of the tokenizer, in order, as its file has them."""
        decoder = getattr(getattr(self.tokenizer, "backend_tokenizer", None), "decoder", None)
        described = {} if decoder is None else json.loads(decoder.__getstate__())
        return described.get("decoders", [described] if described else [])

    @cached_property
    def _n_stripped(self) -> int:
        """How many spaces at the start of a text the decoders strip."""
        for one in self._decoders:
            if one["type"] == "Strip":
                return int(one["start"])
            if one["type"] == "Metaspace" and one.get("prepend_scheme", "always") != "never":
                return 1
        return 0

    @cached_property
    def _bytes(self) -> dict[int, bytes] | None:
        """The bytes that each token adds to a text; None where a text is more than its tokens joined."""
        replaced: list[tuple[str, str]] = []
        kinds = [one["type"] for one in self._decoders]
        for one in self._decoders:
            if one["type"] == "Metaspace":
                replaced.append((one["replacement"], " "))
            elif one["type"] == "Replace" and "String" in one["pattern"]:
                replaced.append((one["pattern"]["String"], one["content"]))
            elif one["type"] == "Replace" or (one["type"] == "Strip" and one["content"] != " "):
                return None
        if not kinds or not PLAIN.issuperset(kinds):
            return None
        added = self.tokenizer.added_tokens_decoder
        return {
            number: self._bytes_of(piece, kinds, replaced, literal=number in added)
            for number, piece in self._pieces.items()
        }

    def _bytes_of(self, piece: str, kinds: Sequence[str], replaced: Sequence[tuple[str, str]], literal: bool) -> bytes:
        byte = BYTE.fullmatch(piece)
        if byte and "ByteFallback" in kinds:
            return bytes([int(byte[1], 16)])
        for old, new in replaced:
            piece = piece.replace(old, new)
        if "ByteLevel" in kinds and not literal:
            try:
                return piece.translate(BYTES).encode("latin-1")
            except UnicodeEncodeError:  # a token that was added as a text
                return piece.encode()
        return piece.encode()


def _joined(of: Mapping[int, bytes], ids: Iterable[int]) -> str:
    """The text of tokens; bytes that are no characters, and tokens beyond the tokenizer, are written as such."""
    return b"".join(of.get(number, f"<{number}>".encode()) for number in ids).decode("utf-8", "algoscope.bytes")


# ---------------------------------------------------------------------- finding


def find_tokenizer(rest: str, config: PretrainedConfig, offline: bool) -> Text:
    """The tokenizer of a folder or of a repository. Code in it is never run.

    Where there is none, or it cannot be read, texts are token ids; what is no id is answered with the reason.
    """
    d_vocab, ends, folder = config.vocab_size, stored_end_tokens(rest, config, offline), Path(rest)
    files = [file for file in FILES if (folder / file).exists() or (folder / file).is_symlink()]
    if folder.is_dir() and not files:
        return Numbers(d_vocab, ends=ends or ())  # the library would create an empty one
    try:
        tokenizer = AutoTokenizer.from_pretrained(rest, local_files_only=offline, trust_remote_code=False)
        if len(tokenizer) <= len(set(tokenizer.all_special_ids)):
            raise ValueError("it has no tokens")
        return TokenizerText(tokenizer, d_vocab, ends)
    except Exception as error:  # the library has no common class for the many ways a file can be damaged
        named = f" ({', '.join(files)})" if files else ""
        return Numbers(d_vocab, f"the tokenizer of this model{named} could not be read ({_reason(error)})", ends or ())


def tokenizer_to_text(tokenizer: object, d_vocab: int, ends: Iterable[int] | None = None) -> TokenizerText:
    """A tokenizer of `transformers` or of `tokenizers` in memory. Raises SubjectError for anything else."""
    if isinstance(tokenizer, Tokenizer):
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokenizer)
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        raise SubjectError(
            f"tokenizer={shown(tokenizer)} is no tokenizer: give one of transformers, such as "
            "AutoTokenizer.from_pretrained(FOLDER), one of tokenizers, or the characters of the tokens in order"
        )
    return TokenizerText(tokenizer, d_vocab, ends)


def stored_end_tokens(rest: str, config: PretrainedConfig, offline: bool) -> list[int] | None:
    """The tokens at which the library ends a text of the model at this place; None: not said."""
    try:
        settings = GenerationConfig.from_pretrained(rest, local_files_only=offline)
    except (OSError, ValueError):  # there is no such file, or no such settings: the library takes those of the config
        settings = None
    return end_tokens(settings, config)


def end_tokens(settings: GenerationConfig | None, config: PretrainedConfig) -> list[int] | None:
    """The tokens that end a text by these settings of generation; without settings, by the config. None: not said."""
    ends = getattr(config if settings is None else settings, "eos_token_id", None)
    listed = ends if isinstance(ends, list | tuple) else [ends]
    return [end for end in listed if isinstance(end, int) and 0 <= end < config.vocab_size] or None


def _reason(error: Exception) -> str:
    reason = " ".join(str(error).split())
    missing = [name for name, is_there in READERS.items() if not is_there()]
    if missing and re.search("sentencepiece|tiktoken|protobuf", reason):  # the library names one that may not be it
        return f"reading it needs packages that are not installed: pip install {' '.join(missing)}"
    return reason if isinstance(error, OSError | VocabularyError) else f"{type(error).__name__}: {reason}"
