"""P5: a forward through a subject against the bare model of `transformers`, and the largest difference of the logits.

Run `python benchmarks/forward.py`. Shapes of published models, random weights, logits at every position.
"""

import os

import torch
from transformers import AutoModelForCausalLM, GPT2Config, GPTNeoXConfig, LlamaConfig, Qwen3Config

import harness
from algoscope.core.threads import threads
from algoscope.subjects.huggingface import convert
from algoscope.subjects.subject import Subject
from algoscope.subjects.text import Numbers

ROUNDS, REPEATS = 7, 3
SHAPES = {
    "GPT-2 small": GPT2Config(),
    "Pythia 160M": GPTNeoXConfig(
        vocab_size=50_304, hidden_size=768, num_hidden_layers=12, num_attention_heads=12, intermediate_size=3072
    ),
    "a Llama of 12 x 768": LlamaConfig(
        vocab_size=32_000, hidden_size=768, num_hidden_layers=12, num_attention_heads=12, num_key_value_heads=4,
        intermediate_size=2048,
    ),
    "a Qwen 3 of 12 x 768": Qwen3Config(
        vocab_size=32_000, hidden_size=768, num_hidden_layers=12, num_attention_heads=12, num_key_value_heads=4,
        intermediate_size=2048, head_dim=64,
    ),
}  # fmt: skip


@torch.no_grad()
def main() -> None:
    """Measure and print."""
    harness.heading("A forward through a subject")
    rows = []
    for name, config in SHAPES.items():
        torch.manual_seed(0)
        bare = AutoModelForCausalLM.from_config(config).eval()
        subject = Subject(name, convert(bare), text=Numbers(config.vocab_size))
        for n_threads in (len(os.sched_getaffinity(0)), 1):
            for batch, n_pos in ((1, 15), (1, 64), (8, 64)):
                tokens = torch.randint(config.vocab_size, (batch, n_pos), generator=torch.Generator().manual_seed(0))
                ours, theirs = subject(tokens), bare(tokens).logits
                difference = float((ours - theirs).abs().max() / theirs.abs().max())

                def plain(tokens: torch.Tensor = tokens, bare: torch.nn.Module = bare) -> None:
                    for _ in range(REPEATS):
                        bare(tokens)

                def through(tokens: torch.Tensor = tokens, subject: Subject = subject) -> None:
                    for _ in range(REPEATS):
                        subject(tokens)

                with threads(n_threads):
                    taken = harness.alternate({"bare": plain, "subject": through}, ROUNDS)
                ratios = [mine / its for mine, its in zip(taken["subject"], taken["bare"], strict=True)]
                milliseconds = [1000 * value / REPEATS for value in taken["subject"]]
                row = (name, n_threads, f"{batch} x {n_pos}", harness.spread(milliseconds), harness.spread(ratios))
                rows.append((*row, f"{difference:.1e}"))
    columns = ["shape", "threads", "batch x tokens", "milliseconds", "times the bare model", "relative difference"]
    harness.table(columns, rows)


if __name__ == "__main__":
    main()
