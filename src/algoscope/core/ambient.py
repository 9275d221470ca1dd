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
def usual_torch(*, gradients: bool = False) -> Iterator[None]:
    """Run the body, or a decorated function, with the settings of PyTorch on which a forward pass depends: new tensors
    in float32 on the CPU, no autocast, float32 products in float32. Then restore those of the caller.

    Args:
        gradients: whether gradients are recorded; where they are, inference mode is left as well.
    """
    if _torch_is_usual():
        with torch.set_grad_enabled(
            gradients
        ):  # a tiny model runs for less than a millisecond: this way is the short one
            yield
        return
    with ExitStack() as stack:
        _make_torch_usual(stack)
        stack.enter_context(torch.set_grad_enabled(gradients))
        yield


@contextmanager
def settled(*, gradients: bool = False) -> Iterator[None]:
    """As `usual_torch`, with NumPy's own handling of overflow; the state of PyTorch's global random numbers is restored
    afterwards.
    """
    with usual_torch(gradients=gradients), np.errstate(divide="warn", over="warn", under="ignore", invalid="warn"):
        random_state = torch.get_rng_state()
        try:
            yield
        finally:
            torch.set_rng_state(random_state)


def _torch_is_usual() -> bool:
    made = torch.empty(0)  # quicker than asking for the default device and type
    return (
        made.dtype == torch.float32
        and made.device.type == "cpu"
        and not torch.is_inference_mode_enabled()
        and not any(map(torch.is_autocast_enabled, DEVICES))
        and all(product.fp32_precision in EXACT for product in PRODUCTS)
    )


def _make_torch_usual(stack: ExitStack) -> None:
    if torch.is_inference_mode_enabled():
        stack.enter_context(torch.inference_mode(False))
    if torch.get_default_device().type != "cpu":
        stack.enter_context(torch.device("cpu"))
    for device in DEVICES:
        if torch.is_autocast_enabled(device):
            stack.enter_context(torch.autocast(device, enabled=False))
    if torch.get_default_dtype() != torch.float32:
        stack.callback(torch.set_default_dtype, torch.get_default_dtype())
        torch.set_default_dtype(torch.float32)
    for product in PRODUCTS:
        if product.fp32_precision not in EXACT:
            stack.callback(setattr, product, "fp32_precision", product.fp32_precision)
            product.fp32_precision = "ieee"
