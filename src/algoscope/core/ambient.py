"""The surroundings of a computation: what a program sets for itself changes no result of ours.

PyTorch and NumPy read global settings at every operation. A notebook that begins with `torch.set_grad_enabled(False)`,
or a tool that sets a default float type, must not change what a lens, a verdict or a training run says.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch

from algoscope.core.errors import ConfigError

DEVICES = ("cpu", "cuda")  # for which PyTorch may be set to compute in half precision (autocast)
EXACT = ("ieee", "none")  # matrix products of float32 in float32
_BACKENDS: Any = torch.backends  # the stubs of PyTorch lack a part
PRODUCTS = (_BACKENDS.cuda.matmul, _BACKENDS.mkldnn.matmul)


def find_device(name: str | torch.device) -> torch.device:
    """A device of this machine by name. Raises ConfigError for one that is not available."""
    try:
        device = torch.zeros(0, device=torch.device(name)).device
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"device {str(name)!r} is not available here; known: cpu, cuda, mps") from error
    if device.type == "meta":
        raise ConfigError("a model on the device 'meta' has no weights; known: cpu, cuda, mps")
    return device


@contextmanager
def settled(*, gradients: bool = False) -> Iterator[None]:
    """Run the body, or a decorated function, in the usual surroundings, then restore those of the caller.

    The usual ones: new tensors in float32 on the CPU, no autocast, float32 products in float32, NumPy's own handling of
    overflow. The state of PyTorch's global random numbers is restored afterwards.

    Args:
        gradients: whether gradients are recorded; where they are, inference mode is left as well.
    """
    with ExitStack() as stack:
        enter = stack.enter_context
        if torch.is_inference_mode_enabled():
            enter(torch.inference_mode(False))
        enter(torch.set_grad_enabled(gradients))
        enter(np.errstate(divide="warn", over="warn", under="ignore", invalid="warn"))
        if torch.get_default_device().type != "cpu":
            enter(torch.device("cpu"))
        for device in DEVICES:
            if torch.is_autocast_enabled(device):
                enter(torch.autocast(device, enabled=False))
        if torch.get_default_dtype() != torch.float32:
            stack.callback(torch.set_default_dtype, torch.get_default_dtype())
            torch.set_default_dtype(torch.float32)
        for product in PRODUCTS:
            if product.fp32_precision not in EXACT:
                stack.callback(setattr, product, "fp32_precision", product.fp32_precision)
                product.fp32_precision = "ieee"
        stack.callback(torch.set_rng_state, torch.get_rng_state())
        yield
