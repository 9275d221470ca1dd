"""Tokenizers of Hugging Face."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PretrainedConfig

from algoscope.subjects.text import Numbers, Text

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "tokenizer_config.json")


class TokenizerText(Text):
    """A Hugging Face tokenizer."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.end_token: int | None = tokenizer.eos_token_id

    def encode(self, text: str) -> list[int]:
        return list(self.tokenizer(text)["input_ids"])

    def decode(self, ids: Sequence[int]) -> str:
        return str(self.tokenizer.decode(list(ids)))

    def token(self, number: int) -> str:
        return str(self.tokenizer.decode([number]))


def find_tokenizer(rest: str, config: PretrainedConfig, offline: bool) -> Text:
    if Path(rest).is_dir() and not any((Path(rest) / file).is_file() for file in TOKENIZER_FILES):
        return Numbers(config.vocab_size)  # the library would create an empty one
    try:
        return TokenizerText(AutoTokenizer.from_pretrained(rest, local_files_only=offline))
    except (OSError, ValueError, KeyError, ImportError):
        return Numbers(config.vocab_size)
