"""Tables are drawn as PyTorch draws them; without storage nothing is drawn, and nothing slow is loaded for it."""

import subprocess
import sys

import torch
from torch import nn

from algoscope.networks._embedding_table import embedding_table


def test_the_draws_are_those_of_pytorch() -> None:
    torch.manual_seed(3)
    ours = embedding_table(5, 4)
    torch.manual_seed(3)
    assert torch.equal(ours.weight, nn.Embedding(5, 4).weight)
    assert ours.weight.requires_grad


def test_a_model_from_a_config_loads_no_compiler() -> None:
    code = (
        "import sys, algoscope as ag; from algoscope.networks.build import build;"
        "build(ag.ModelConfig(d_vocab=5, n_ctx=4, d_model=8), 0); assert 'torch._dynamo' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
