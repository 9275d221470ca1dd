"""Our side of `sweeps.py`: every patch of a sweep in one call. `python ours.py THREADS`, jobs on standard input."""

import numpy as np
import torch
from serving import RIVAL, TARGET, cells_of, inputs, serve

import algoscope as ag

SITES = {
    "resid_pre": ["resid_pre"],
    "head": ["z"],
    "head_position": ["z"],
    "block_every": ["resid_pre", "attn_out", "mlp_out"],
}


class Algoscope:
    """A folder of weights as a subject."""

    def __init__(self, folder: str) -> None:
        self.fixed = 0.0
        self.subject = ag.open(f"hf:{folder}")
        self.cfg = self.subject.cfg

    def sweep(self, name: str, n_pos: int, wanted: int) -> tuple[np.ndarray, int]:
        clean, corrupt = inputs(self.cfg.d_vocab, n_pos)
        record = [(kind, layer) for kind in SITES[name] for layer in range(self.cfg.n_layers)]
        donor = self.subject.run(clean, record=record, at=slice(0, 0))[1]
        places: list[dict[str, int]] = [{"pos": p} for p in range(n_pos)]
        if name == "head":
            places = [{"head": h} for h in range(self.cfg.n_heads)]
        if name == "head_position":  # [layer pos head], as the other side has it
            places = [{"head": h, "pos": p} for p in range(n_pos) for h in range(self.cfg.n_heads)]
        edits = [ag.Patch(site, value=donor[site], **place) for site in record for place in places]
        chosen = cells_of(len(edits), wanted)
        logits = self.subject.run_each(
            corrupt, [edits[i] for i in chosen], at=slice(-1, None), among=torch.tensor([TARGET, RIVAL])
        )[:, 0, 0]
        return (logits[:, 0] - logits[:, 1]).numpy(), len(edits)

    def logit_lens(self, n_pos: int) -> None:
        ag.lenses.logit(self.subject, [" ".join(map(str, inputs(self.cfg.d_vocab, n_pos)[0][0].tolist()))])

    def forward(self, n_pos: int) -> None:
        self.subject.run(inputs(self.cfg.d_vocab, n_pos)[0])

    def cached(self, n_pos: int) -> None:
        self.subject.run_with_cache(inputs(self.cfg.d_vocab, n_pos)[0])


if __name__ == "__main__":
    serve(Algoscope)
