"""TransformerLens's side of `sweeps.py`: its own sweep functions. `python theirs.py THREADS`, jobs on standard input.

It runs in an environment that need not have algoscope.
"""

import time
from collections.abc import Callable

import numpy as np
import pandas as pd
import torch
from serving import RIVAL, TARGET, cells_of, inputs, serve
from transformer_lens import patching
from transformer_lens.model_bridge import TransformerBridge


class TransformerLens:
    """Its bridge to a folder of weights."""

    def __init__(self, folder: str) -> None:
        self.fixed = 0.0
        self.model = TransformerBridge.boot_transformers(folder, device="cpu")
        torch.set_grad_enabled(False)
        self.cfg = self.model.cfg

    def sweep(self, name: str, n_pos: int, wanted: int) -> tuple[np.ndarray, int]:
        layers, heads = self.cfg.n_layers, self.cfg.n_heads
        by_pos = {"layer": layers, "pos": n_pos}
        if name == "block_every":
            works = [patching.get_act_patch_resid_pre, patching.get_act_patch_attn_out, patching.get_act_patch_mlp_out]
            parts = [self._one(work, by_pos, n_pos, wanted // 3) for work in works]
            return np.concatenate([values for values, _ in parts]), sum(total for _, total in parts)
        work, axes = {
            "resid_pre": (patching.get_act_patch_resid_pre, by_pos),
            "head": (patching.get_act_patch_attn_head_out_all_pos, {"layer": layers, "head": heads}),
            "head_position": (patching.get_act_patch_attn_head_out_by_pos, {**by_pos, "head": heads}),
        }[name]
        return self._one(work, axes, n_pos, wanted)

    def _one(self, work: Callable, axes: dict[str, int], n_pos: int, wanted: int) -> tuple[np.ndarray, int]:
        """One of its sweeps: whole, or the cells of an index frame."""
        clean, corrupt = inputs(self.cfg.d_vocab, n_pos)
        began = time.perf_counter()
        _, cache = self.model.run_with_cache(clean)
        self.fixed += time.perf_counter() - began
        grid = list(np.ndindex(*axes.values()))
        chosen = cells_of(len(grid), wanted)

        def metric(logits: torch.Tensor) -> torch.Tensor:
            return logits[0, -1, TARGET] - logits[0, -1, RIVAL]

        some = {}
        if len(chosen) < len(grid):
            some = {"index_axis_names": None, "index_df": pd.DataFrame([grid[i] for i in chosen], columns=list(axes))}
        values = work(self.model, corrupt, cache, metric, **some)
        return values.reshape(-1).numpy(), len(grid)

    def logit_lens(self, n_pos: int) -> None:
        _, cache = self.model.run_with_cache(inputs(self.cfg.d_vocab, n_pos)[0])
        stream = cache.accumulated_resid(layer=-1, incl_mid=False)
        self.model.unembed(self.model.ln_final(stream)).softmax(dim=-1)

    def forward(self, n_pos: int) -> None:
        self.model(inputs(self.cfg.d_vocab, n_pos)[0])

    def cached(self, n_pos: int) -> None:
        self.model.run_with_cache(inputs(self.cfg.d_vocab, n_pos)[0])


if __name__ == "__main__":
    serve(TransformerLens)
