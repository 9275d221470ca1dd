"""The activation functions of the feed-forward, by the names of `ModelConfig.act_fn`."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from algoscope.networks.taps import precise

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "silu": F.silu,
    "quick_gelu": lambda x: (x * torch.sigmoid(1.702 * x.to(precise(x.dtype)))).to(x.dtype),
    "tanh": torch.tanh,
    "relu_squared": lambda x: F.relu(x).square(),
    "leaky_relu": F.leaky_relu,
}
