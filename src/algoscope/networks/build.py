"""Models with weights drawn from a seed."""

import torch
from torch import nn

from algoscope.config import ModelConfig
from algoscope.networks.low_rank import LowRank
from algoscope.networks.norms import Norm
from algoscope.networks.transformer import HeadBias, Transformer


def build(cfg: ModelConfig, seed: int, device: torch.device | str = "cpu") -> Transformer:
    """A model with weights drawn from `seed`: on the CPU, so that they are the same for every device."""
    with torch.device("meta"):
        model = Transformer(cfg)
    model.to_empty(device="cpu")
    initialise(model, torch.Generator().manual_seed(seed))
    return model.to(device)


@torch.no_grad()
def initialise(model: Transformer, generator: torch.Generator) -> None:
    """Initialise all weights, in the order of the modules: matrices and embeddings random, biases 0, norms 1."""
    cfg = model.cfg
    for name, module in model.named_modules():
        if isinstance(module, nn.Embedding):
            module.weight.normal_(0, cfg.init_embed_std, generator=generator)
        elif isinstance(module, Norm):
            module.weight.fill_(1)
            if module.bias is not None:
                module.bias.zero_()
        elif isinstance(module, HeadBias):
            module.bias.zero_()
        elif isinstance(module, nn.Linear):
            zero = cfg.init_zero_out and name.endswith((".attn.o", ".mlp.w_out"))
            if isinstance(module, LowRank):
                std = _std(cfg, name)
                module.draw((3 * module.in_features) ** -0.5 if std is None else std, zero, generator)
            elif zero:
                module.weight.zero_()
            elif (std := _std(cfg, name)) is None:
                bound = module.in_features**-0.5
                module.weight.uniform_(-bound, bound, generator=generator)
            else:
                module.weight.normal_(0, std, generator=generator)
            if module.bias is not None:
                module.bias.zero_()


def _std(cfg: ModelConfig, name: str) -> float | None:
    unembed_std = cfg.init_unembed_std if name == "unembed" else None
    return cfg.init_matrix_std if unembed_std is None else unembed_std
