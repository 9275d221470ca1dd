"""P4 and P5: patching sweeps, logit lens and forwards, against TransformerLens on the same weights.

Run `python benchmarks/sweeps.py [--peer PYTHON]... [--cells N] [--rounds N]`. Each `--peer` is an interpreter with a
TransformerLens installed (a version may need an environment of its own); without one, this interpreter's. Every side is
a process of its own (`sides/`), and they take turns. TransformerLens runs the whole model for each cell, so of a
sweep with more than N cells (0: all) it computes N, spread evenly, and their time is taken as so many times longer;
ours computes all of them.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import click
import numpy as np
import torch
from tokenizers import Tokenizer, models
from transformers import AutoModelForCausalLM, GPT2Config, PreTrainedTokenizerFast

import harness

SHAPES = {
    "GPT-2 small": GPT2Config(),
    "17,760 parameters": GPT2Config(
        vocab_size=14, n_positions=13, n_embd=32, n_layer=2, n_head=1, n_inner=64, activation_function="relu",
        bos_token_id=12, eos_token_id=12,
    ),
}  # fmt: skip
LENGTHS = {"GPT-2 small": (15, 64), "17,760 parameters": (12,)}
SWEEPS = {
    "resid_pre": "`resid_pre`, layer x position",
    "head": "heads over all positions",
    "head_position": "heads by position",
    "block_every": "residual, attention, feed-forward by position",
}


class Side:
    """A process that answers jobs: `ours`, or `theirs`."""

    def __init__(self, python: str, kind: str, threads: int) -> None:
        self.kind, self.peak = kind, 0.0
        script = Path(__file__).parent / "sides" / f"{kind}.py"
        self.process = subprocess.Popen(
            [python, str(script), str(threads)], text=True,
            env=os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "ignore"},
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        )  # fmt: skip

    def ask(self, **job: object) -> dict[str, float]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(job) + "\n")
        self.process.stdin.flush()
        for line in self.process.stdout:
            if line.startswith("ANSWER "):
                answer = dict(json.loads(line.removeprefix("ANSWER ")))
                self.peak = answer["peak_mb"]
                return answer
        raise SystemExit(f"the side {self.kind} ended without an answer to {job}")


def version_of(python: str) -> str:
    """The version of TransformerLens that an interpreter has."""
    asked = "from importlib.metadata import version; print(version('transformer_lens'))"
    return subprocess.check_output([python, "-c", asked], text=True).strip()


def save_models(folder: Path) -> None:
    """Random weights in folders that every side can open; a tokenizer that nobody uses, but that theirs asks for."""
    for name, config in SHAPES.items():
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(config).save_pretrained(folder / name)
        words = Tokenizer(models.WordLevel({"<s>": 0, "</s>": 1}, unk_token="<s>"))
        PreTrainedTokenizerFast(tokenizer_object=words, bos_token="<s>", eos_token="</s>").save_pretrained(
            folder / name
        )


def compare(sides: dict[str, Side], job: dict[str, object], rounds: int, cells: int, folder: Path) -> list[str]:
    """One row: seconds of each side, the ratio to the fastest other, the largest difference."""
    ours, *others = sides
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    values: dict[str, np.ndarray] = {}
    for turn in range(rounds + 1):
        for name, side in sides.items():
            out = folder / f"{name}.npy"
            wanted = 0 if name == ours else cells
            answer = side.ask(**job, cells=wanted, out=str(out))
            if turn:
                fixed, scale = answer.get("fixed", 0.0), answer.get("total", 1) / answer.get("cells", 1)
                seconds[name].append(fixed + (answer["seconds"] - fixed) * scale)
            if job["what"] == "sweep":
                values[name] = np.load(out)
    fastest = min(others, key=lambda name: sorted(seconds[name])[rounds // 2])
    ratios = [theirs / mine for theirs, mine in zip(seconds[fastest], seconds[ours], strict=True)]
    difference = ""
    if values:
        mine, theirs = values[ours], values[fastest]
        parts = 3 if job["name"] == "block_every" else 1
        chosen = np.concatenate([
            i * len(mine) // parts + np.linspace(0, len(mine) // parts - 1, len(theirs) // parts).astype(int)
            for i in range(parts)
        ])  # fmt: skip
        difference = f"{np.abs(mine[chosen] - theirs).max():.1e}"
    return [*(harness.spread(taken) for taken in seconds.values()), harness.spread(ratios), difference]


@click.command()
@click.option("--peer", multiple=True, default=[sys.executable])
@click.option("--cells", default=36, show_default=True)
@click.option("--rounds", default=3, show_default=True)
@click.option("--shape", multiple=True, default=list(SHAPES))
@click.option("--sweep", "sweeps", multiple=True, default=list(SWEEPS))
@click.option("--tokens", multiple=True, type=int, help="Only these lengths.")
@click.option("--threads", "counts", multiple=True, type=int, default=[len(os.sched_getaffinity(0)), 1])
def main(
    peer: tuple[str, ...],
    cells: int,
    rounds: int,
    shape: tuple[str, ...],
    sweeps: tuple[str, ...],
    tokens: tuple[int, ...],
    counts: tuple[int, ...],
) -> None:
    """Measure and print."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        save_models(folder)
        for threads in counts:
            sides = {"algoscope": Side(sys.executable, "ours", threads)}
            sides |= {f"TransformerLens {version_of(python)}": Side(python, "theirs", threads) for python in peer}
            harness.heading(f"Patching sweeps, logit lens and forwards, {threads} thread{'s' * (threads > 1)}")
            print(
                f"Seconds: median (min to max) of {rounds} turns. Of a sweep TransformerLens computed {cells} cells.\n"
            )
            columns = ["shape", "tokens", "what", *sides, "times faster than the fastest", "largest difference"]
            rows: list[list[object]] = []
            peaks: dict[str, float] = {}
            for name in shape:
                for n_pos in (n for n in LENGTHS[name] if n in tokens or not tokens):
                    times = 1 if n_pos > 12 else 5
                    common: dict[str, object] = {"folder": str(folder / name), "n_pos": n_pos, "times": times}
                    jobs = [
                        *(
                            (said, {"what": "sweep", "name": sweep, **common})
                            for sweep, said in SWEEPS.items()
                            if sweep in sweeps
                        ),
                        ("logit lens", {"what": "logit_lens", **common, "times": 5}),
                        ("forward, nothing recorded", {"what": "forward", **common, "times": 5}),
                        ("forward, everything recorded", {"what": "cached", **common, "times": 5}),
                    ]
                    for said, job in jobs:
                        if job["what"] != "sweep" and not peaks:
                            peaks = {kind: side.peak for kind, side in sides.items()}
                        found = compare(sides, job, rounds, cells, folder)
                        rows.append([name, n_pos, said, *found])
                        print(f"{name} {n_pos} {said}: {found}", file=sys.stderr, flush=True)
            harness.table(columns, rows)
            most = ", ".join(f"{kind} {peak:.0f}" for kind, peak in peaks.items())
            print(f"\nLargest memory of each process after the first sweeps, MB: {most}.")
            for side in sides.values():
                side.process.kill()


if __name__ == "__main__":
    main()
