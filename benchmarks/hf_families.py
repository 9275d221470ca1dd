"""Families of Hugging Face against `transformers`: largest differences of logits on random models, and the memory that
opening takes.

Run `python benchmarks/hf_families.py`, or `python benchmarks/hf_families.py memory`.
"""

import copy
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, Gemma2Config, GPT2Config, LlamaConfig
from transformers.utils import logging

import harness
from algoscope.networks.kv_cache import KeyValueCache
from algoscope.subjects.huggingface import open_model_object

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
import hf_models

SEEDS, N, BF16 = 3, 4, torch.bfloat16
LARGE: list[tuple[str, Any, Any]] = [
    (
        "gpt2", GPT2Config(n_embd=768, n_layer=6, n_head=12, vocab_size=20_000),
        GPT2Config(n_embd=24, n_layer=1, n_head=2, vocab_size=9),
    ),
    (
        "llama", LlamaConfig(hidden_size=768, intermediate_size=2048, num_hidden_layers=6, vocab_size=20_000),
        LlamaConfig(hidden_size=64, intermediate_size=24, num_hidden_layers=1, vocab_size=9),
    ),
    (
        "gemma 2", Gemma2Config(hidden_size=768, intermediate_size=2048, num_hidden_layers=6, vocab_size=20_000),
        Gemma2Config(hidden_size=64, intermediate_size=24, num_hidden_layers=1, vocab_size=9),
    ),
]  # fmt: skip
"""A family, a config of some 200 MiB, and a tiny one."""


def apart(ours: Tensor, theirs: Tensor) -> float:
    """The largest difference, as a share of the largest logit."""
    return float((ours.double() - theirs.double()).abs().max() / theirs.abs().max())


@torch.no_grad()
def differences(family: str, seed: int) -> dict[str, float]:
    """Our logits against the library's: whole, padded on both sides, token by token, and in bfloat16."""
    source = hf_models.make(family, seed)
    subject = open_model_object(source, family)
    n_ctx, draw = subject.cfg.n_ctx, torch.Generator().manual_seed(seed)
    tokens = torch.randint(hf_models.D_VOCAB, (N, n_ctx - 1), generator=draw)
    lengths, place = torch.randint(1, n_ctx, (N, 1), generator=draw), torch.arange(n_ctx - 1)
    padded = 0.0
    for mask in (place < lengths, place >= n_ctx - 1 - lengths):
        positions = (mask.long().cumsum(1) - 1).clamp(min=0)
        theirs = source(tokens, attention_mask=mask.long(), position_ids=positions).logits
        padded = max(padded, apart(subject.run(tokens, attention_mask=mask)[0][mask], theirs[mask]))
    exact, cache = source(tokens).logits, KeyValueCache()
    steps = [subject.model(tokens[:, i : i + 1], cache=cache) for i in range(tokens.shape[1])]
    half = AutoModelForCausalLM.from_config(copy.deepcopy(source.config), dtype=BF16)  # which changes the config
    half.load_state_dict(source.state_dict())
    ours = open_model_object(half.eval(), family).run(tokens)[0]
    return {
        "whole": apart(subject.run(tokens)[0], exact),
        "padded": padded,
        "token by token": apart(torch.cat(steps, dim=1), exact),
        "bfloat16": apart(ours, exact),
        "the library's bfloat16": apart(half(tokens).logits, exact),
    }


def compare() -> None:
    harness.heading(f"Families of Hugging Face: largest difference of logits, as a share of the largest, {SEEDS} seeds")
    rows = []
    for family, config in (hf_models.CONFIGS | hf_models.MORE).items():
        each = [differences(family, seed) for seed in range(SEEDS)]
        largest = {what: max(one[what] for one in each) for what in each[0]}
        rows.append((config.model_type, family, *(f"{value:.1e}" for value in largest.values())))
    harness.table(["model_type", "config", *largest], rows)


def peak(folder: str, dtype: torch.dtype) -> int:
    """The largest memory of a process that opens a folder, in bytes."""
    code = f"""
from pathlib import Path
import algoscope as ag
ag.open("hf:{folder}", dtype="{str(dtype).removeprefix("torch.")}")
print(*(line for line in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in line))"""
    ran = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return 1024 * int(ran.stdout.split()[-2])


def memory() -> None:
    harness.heading("Memory that opening takes, beyond that of a tiny model, in multiples of the weights in the folder")
    rows = []
    for name, large, tiny in LARGE:
        for dtype in (torch.float32, BF16):
            with tempfile.TemporaryDirectory() as folder:
                sizes, peaks = [], []
                for place, config in (("tiny", tiny), ("large", large)):
                    source = AutoModelForCausalLM.from_config(config, dtype=dtype)
                    source.save_pretrained(f"{folder}/{place}")
                    sizes.append(sum(weight.nbytes for weight in source.parameters()))
                    peaks.append(peak(f"{folder}/{place}", dtype))
            kind, size = str(dtype).removeprefix("torch."), sizes[1] - sizes[0]
            rows.append((name, kind, f"{size / 2**20:.0f} MiB", f"{(peaks[1] - peaks[0]) / size:.2f}"))
    harness.table(["model", "float type", "weights", "memory / weights"], rows)


if __name__ == "__main__":
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    memory() if sys.argv[1:] == ["memory"] else compare()
