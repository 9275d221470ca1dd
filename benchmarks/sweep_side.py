"""One side of `sweeps.py` in a process of its own: `python sweep_side.py algoscope|transformer_lens`.

Reads jobs as JSON lines on standard input and answers each with one line: seconds (`fixed`: those that do not grow with
the cells), how many cells were computed and of how many, and the largest memory so far; their values go to a file.
Nothing is cached between jobs. The metric is the logit difference of two tokens at the last position; the values that
are patched in come from the other of two random inputs.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

os.environ["HF_HUB_OFFLINE"] = "1"
TARGET, RIVAL = 3, 4


def inputs(d_vocab: int, n_pos: int) -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    clean, corrupt = torch.randint(5, d_vocab, (2, 1, n_pos), generator=draw)
    return clean, corrupt


def cells_of(total: int, wanted: int) -> list[int]:
    """Cells spread evenly over a sweep: all of them where `wanted` is 0."""
    return (
        list(range(total)) if not wanted or wanted >= total else np.linspace(0, total - 1, wanted).astype(int).tolist()
    )


SITES = {
    "resid_pre": ["resid_pre"],
    "head": ["z"],
    "head_position": ["z"],
    "block_every": ["resid_pre", "attn_out", "mlp_out"],
}


class Algoscope:
    """Our way: every patch of the sweep in one call."""

    def __init__(self, folder: str) -> None:
        import algoscope as ag  # noqa: PLC0415  (the other side's environment has it not)

        self.ag, self.fixed = ag, 0.0
        self.subject = ag.open(f"hf:{folder}")
        self.cfg = self.subject.cfg

    def sweep(self, name: str, n_pos: int, wanted: int) -> tuple[np.ndarray, int]:
        clean, corrupt = inputs(self.cfg.d_vocab, n_pos)
        kinds = SITES[name]
        record = [(kind, layer) for kind in kinds for layer in range(self.cfg.n_layers)]
        donor = self.subject.run(clean, record=record, at=slice(0, 0))[1]
        places: list[dict[str, int]] = [{"pos": p} for p in range(n_pos)]
        if name == "head":
            places = [{"head": h} for h in range(self.cfg.n_heads)]
        if name == "head_position":  # [layer pos head], as the other side has it
            places = [{"head": h, "pos": p} for p in range(n_pos) for h in range(self.cfg.n_heads)]
        edits = [self.ag.Patch(site, value=donor[site], **place) for site in record for place in places]
        chosen = cells_of(len(edits), wanted)
        logits = self.subject.run_each(
            corrupt, [edits[i] for i in chosen], at=slice(-1, None), among=torch.tensor([TARGET, RIVAL])
        )[:, 0, 0]
        return (logits[:, 0] - logits[:, 1]).numpy(), len(edits)

    def logit_lens(self, n_pos: int) -> np.ndarray:
        return self.ag.lenses.logit(self.subject, [" ".join(map(str, inputs(self.cfg.d_vocab, n_pos)[0][0].tolist()))])

    def forward(self, n_pos: int) -> None:
        self.subject.run(inputs(self.cfg.d_vocab, n_pos)[0])

    def cached(self, n_pos: int) -> None:
        self.subject.run_with_cache(inputs(self.cfg.d_vocab, n_pos)[0])


class TransformerLens:
    """Its own sweep functions on its bridge to the same folder."""

    def __init__(self, folder: str) -> None:
        from transformer_lens import patching  # noqa: PLC0415
        from transformer_lens.model_bridge import TransformerBridge  # noqa: PLC0415

        self.patching, self.fixed = patching, 0.0
        self.model = TransformerBridge.boot_transformers(folder, device="cpu")
        torch.set_grad_enabled(False)
        self.cfg = self.model.cfg

    def _sweep(self, work: Callable, axes: dict[str, int], n_pos: int, wanted: int) -> tuple[np.ndarray, int]:
        import pandas as pd  # noqa: PLC0415

        clean, corrupt = inputs(self.cfg.d_vocab, n_pos)
        began = time.perf_counter()
        _, cache = self.model.run_with_cache(clean)
        self.fixed += time.perf_counter() - began
        grid = list(np.ndindex(*axes.values()))
        chosen = cells_of(len(grid), wanted)
        frame = pd.DataFrame([grid[i] for i in chosen], columns=list(axes))

        def metric(logits: torch.Tensor) -> torch.Tensor:
            return logits[0, -1, TARGET] - logits[0, -1, RIVAL]

        if len(chosen) == len(grid):
            values = work(self.model, corrupt, cache, metric)
        else:
            values = work(self.model, corrupt, cache, metric, index_axis_names=None, index_df=frame)
        values = values if isinstance(values, torch.Tensor) else values.values
        return values.reshape(-1).numpy(), len(grid)

    def sweep(self, name: str, n_pos: int, wanted: int) -> tuple[np.ndarray, int]:
        layers, heads = self.cfg.n_layers, self.cfg.n_heads
        by_pos, p = {"layer": layers, "pos": n_pos}, self.patching
        if name == "block_every":
            works = [p.get_act_patch_resid_pre, p.get_act_patch_attn_out, p.get_act_patch_mlp_out]
            parts = [self._sweep(work, by_pos, n_pos, wanted // 3) for work in works]
            return np.concatenate([values for values, _ in parts]), sum(total for _, total in parts)
        work, axes = {
            "resid_pre": (p.get_act_patch_resid_pre, by_pos),
            "head": (p.get_act_patch_attn_head_out_all_pos, {"layer": layers, "head": heads}),
            "head_position": (p.get_act_patch_attn_head_out_by_pos, {**by_pos, "head": heads}),
        }[name]
        return self._sweep(work, axes, n_pos, wanted)

    def logit_lens(self, n_pos: int) -> None:
        _, cache = self.model.run_with_cache(inputs(self.cfg.d_vocab, n_pos)[0])
        stream = cache.accumulated_resid(layer=-1, incl_mid=False)
        self.model.unembed(self.model.ln_final(stream)).softmax(dim=-1)

    def forward(self, n_pos: int) -> None:
        self.model(inputs(self.cfg.d_vocab, n_pos)[0])

    def cached(self, n_pos: int) -> None:
        self.model.run_with_cache(inputs(self.cfg.d_vocab, n_pos)[0])


def peak_memory() -> float:
    """Largest resident memory of this process, in MB."""
    status = Path("/proc/self/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) / 1024


def main(side: str) -> None:
    torch.set_num_threads(int(os.environ["SIDE_THREADS"]))
    model: Algoscope | TransformerLens | None = None
    folder = ""
    for line in sys.stdin:
        job = json.loads(line)
        if model is None or job["folder"] != folder:
            folder = job["folder"]
            model = Algoscope(folder) if side == "algoscope" else TransformerLens(folder)
        began = time.perf_counter()
        answer: dict[str, object] = {}
        model.fixed = 0.0
        times = job.get("times", 1)
        for _ in range(times):
            if job["what"] == "sweep":
                values, total = model.sweep(job["name"], job["n_pos"], job["cells"])
            else:
                getattr(model, job["what"])(job["n_pos"])
        answer["seconds"] = (time.perf_counter() - began) / times
        if job["what"] == "sweep":
            np.save(job["out"], values)
            answer |= {"cells": len(values), "total": total, "fixed": model.fixed / times}
        answer["peak_mb"] = peak_memory()
        print("ANSWER " + json.dumps(answer), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]).name)
