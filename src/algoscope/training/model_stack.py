"""Stacks: models of one shape, trained as one batch of models, each with its own data and hyperparameters."""

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from itertools import repeat

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.func import functional_call, vmap

from algoscope.config import RunConfig
from algoscope.networks.digit_positions import at_width_of
from algoscope.networks.evaluation import mean_loss
from algoscope.networks.transformer import PositionIds, Transformer
from algoscope.tasks.base import Task
from algoscope.training.optim import Optimisers, State


@dataclass(frozen=True)
class Start:
    """The initial state of a member: its model (tensors that require no gradient are frozen), and the state of its
    optimisers; None: new ones.
    """

    model: Transformer
    state: State | None = None


class Stack:
    """Models whose configs agree in shape. A single model is called directly, several through `vmap` over the weights.

    Members are independent, so the gradient of the sum of all losses with respect to one member's weights is the
    gradient of that member's loss.
    """

    def __init__(self, configs: Sequence[RunConfig], starts: Sequence[Start], device: torch.device) -> None:
        self.configs, self.device = configs, device
        self.model = starts[0].model.to(device)
        self.optimisers = Optimisers(self.model, [config.optim for config in configs])
        self.flat = self.optimisers.flat
        for member, start in enumerate(starts):
            self.flat.fill(member, start.model.state_dict())
        self.optimisers.start()
        for member, start in enumerate(starts):
            if start.state is not None:
                self.optimisers.load(member, start.state)
        if len(configs) == 1:
            self.flat.bind(self.model)
        self.leaves = self.flat.leaves() if len(configs) > 1 else {}

    def gradient(
        self, tokens: Int[Tensor, "member batch pos"], at: slice, position_ids: PositionIds | None = None
    ) -> tuple[Float[Tensor, "member"], Float[Tensor, "member batch read d_vocab"]]:
        """The mean loss and the logits of each batch; gradients are accumulated over parts of the batch.

        `position_ids`: those of the batch, in a stack of one member.
        """
        losses, logits, n_parts = [], [], self.configs[0].train.accumulate
        ids_of_parts = repeat(None, n_parts) if position_ids is None else position_ids.chunk(n_parts)
        for part, ids in zip(tokens.chunk(n_parts, dim=1), ids_of_parts, strict=False):
            part_logits = self._forward(part[..., :-1], at, ids)
            loss = self._losses(part_logits, part[..., 1:][..., at]) * (part.shape[1] / tokens.shape[1])
            self._backward(loss.sum())
            losses.append(loss.detach())
            logits.append(part_logits.detach())
        if len(losses) == 1:
            return losses[0], logits[0]
        return torch.stack(losses).sum(dim=0), torch.cat(logits, dim=1)

    def step(self, shares: Sequence[float]) -> None:
        """Update every member, at its share of the peak learning rate."""
        self.optimisers.step(shares)

    def answers(
        self, member: int, task: Task, tokens: Int[Tensor, "batch pos"], at: slice
    ) -> Float[Tensor, "batch read d_vocab"]:
        """One member's logits on inputs of a task, without a gradient."""
        with torch.no_grad():
            weights = {name: rows[member] for name, rows in self.flat.tensors(self.optimisers.kept).items()}
            return functional_call(at_width_of(self.model, task), weights, (tokens,), {"at": at})

    def weights(self, member: int) -> dict[str, Tensor]:
        """A copy of one member's tensors, in the order of the model's state dict."""
        mine = self.flat.tensors(self.optimisers.kept)
        return {
            name: (mine[name][member] if name in mine else tensor).detach().clone()
            for name, tensor in self.model.state_dict().items()
        }

    def state(self, member: int) -> State:
        """A copy of its optimiser state."""
        return {name: tensor.clone() for name, tensor in self.optimisers.state(member).items()}

    def only(self, members: Sequence[int]) -> "Stack":
        """A stack of some of the members, in their current state."""
        return Stack(
            [self.configs[member] for member in members], [self._start(member) for member in members], self.device
        )

    def _start(self, member: int) -> Start:
        model = deepcopy(self.model)
        model.load_state_dict(self.weights(member))
        return Start(model, self.state(member))

    def _backward(self, loss: Float[Tensor, ""]) -> None:
        if not self.leaves:  # the model's gradients are views of the row
            loss.backward()
            return
        gradients = torch.autograd.grad(loss, list(self.leaves.values()))
        torch._foreach_add_(list(self.flat.tensors(self.flat.grads).values()), list(gradients))

    def _forward(
        self, tokens: Int[Tensor, "member batch pos"], at: slice, position_ids: PositionIds | None
    ) -> Float[Tensor, "member batch read d_vocab"]:
        if len(self.configs) == 1:
            return self.model(tokens[0], at=at, position_ids=position_ids)[None]

        def one(weights: dict[str, Tensor], batch: Tensor) -> Tensor:
            return functional_call(self.model, weights, (batch,), {"at": at})

        return vmap(one)(self.leaves, tokens)

    def _losses(
        self, logits: Float[Tensor, "member batch read d_vocab"], targets: Int[Tensor, "member batch read"]
    ) -> Float[Tensor, "member"]:
        train = self.configs[0].train
        if len(logits) == 1:
            return mean_loss(logits[0], targets[0], train)[None]
        return vmap(lambda logits, targets: mean_loss(logits, targets, train))(logits, targets)
