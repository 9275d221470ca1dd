"""What attention remembers of the positions already read."""

import torch
from jaxtyping import Float, Int
from torch import Tensor


class KeyValues:
    """What attention remembers of positions already read: the keys and values of every layer.

    Each remembered row serves `family` neighbouring rows of the tokens that follow, which begin alike.
    """

    def __init__(self, layers: list[tuple[Tensor, Tensor]] | None = None, family: int = 1) -> None:
        self.layers, self.family = layers or [], family

    def length(self, layer: int) -> int:
        """Positions remembered by a layer: while a model runs, the first layers are ahead of the last."""
        return self.layers[layer][0].shape[2] if layer < len(self.layers) else 0

    def recall(
        self, layer: int
    ) -> tuple[Float[Tensor, "family kv_head key d_head"], Float[Tensor, "family kv_head key d_head"]] | None:
        """Keys and values of one layer; None where nothing has been read."""
        return self.layers[layer] if layer < len(self.layers) else None

    def extend(
        self, layer: int, k: Float[Tensor, "batch kv_head pos d_head"], v: Float[Tensor, "batch kv_head pos d_head"]
    ) -> None:
        """Remember new positions of one layer. A memory that serves families stays as it is: it is read once."""
        old = self.recall(layer)
        if old is None:
            self.layers.append((k, v))
        elif self.family == 1:
            self.layers[layer] = (torch.cat([old[0], k], dim=2), torch.cat([old[1], v], dim=2))

    def rows(self, index: Int[Tensor, "rows"]) -> "KeyValues":
        """The memory of inputs `index`, each as often as it is named."""
        return KeyValues([(k[index], v[index]) for k, v in self.layers])

    def families(self, first: int, last: int, size: int) -> "KeyValues":
        """The memory of inputs `first` to `last`, each for `size` rows; nothing is copied."""
        return KeyValues([(k[first : last + 1], v[first : last + 1]) for k, v in self.layers], size)
