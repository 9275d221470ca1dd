"""attention layers -> their heads in our order, and the rows of the module's matrices that are ours."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from algoscope.formats.own_modules.attention_fitting import Columns, HeadGroup
from algoscope.formats.own_modules.linear_maps import LinearMap


class Heads:
    """The heads of an attention layer in our order: those that share keys and values stand together."""

    def __init__(self, groups: Sequence[HeadGroup], rows: Tensor) -> None:
        every = [(group, head) for group in groups for head in range(group.z.shape[2])]
        keys: dict[tuple[Any, ...], list[int]] = {}
        for i, (group, head) in enumerate(every):
            assert group.keys is not None
            keys.setdefault((*_identity(group.keys, head), *_identity(group.values, head)), []).append(i)
        grouped = len({len(heads) for heads in keys.values()}) == 1 and len(keys) < len(every)
        shared = list(keys.values()) if grouped else [[i] for i in range(len(every))]
        self.every = every
        self.order = [i for heads in shared for i in heads]
        self.kv_order = [heads[0] for heads in shared]
        self.n_kv = len(shared) if grouped else None
        first = groups[0]
        assert first.queries is not None
        self.qk_size, self.v_size = first.queries.column.shape[1], first.values.column.shape[1]
        self.size = max(self.qk_size, self.v_size)
        self.rows = _wide(rows[self.order], self.size)

    def columns(self, letter: str, entries: tuple[int, ...] | None) -> tuple[list[LinearMap], Tensor]:
        """The maps of queries, keys or values, and for each of our rows the row of these side by side; -1 for zeros."""
        chosen: list[tuple[Columns, int]] = []
        for i in self.order if letter == "q" else self.kv_order:
            group, head = self.every[i]
            columns = {"q": group.queries, "k": group.keys, "v": group.values}[letter]
            assert columns is not None
            chosen.append((columns, head))
        maps = list(dict.fromkeys(one for columns, _ in chosen for one in columns.maps))
        starts = dict(zip(maps, torch.tensor([0, *(one.n_out for one in maps)]).cumsum(0).tolist(), strict=False))
        rows = []
        for columns, head in chosen:
            first = torch.tensor([starts[columns.maps[int(w)]] for w in columns.which[head]])
            row = first + columns.column[head]
            rows.append(row if entries is None else row[list(entries)])
        return maps, _wide(torch.stack(rows), self.size).flatten()


def _identity(columns: Columns, head: int) -> tuple[Any, ...]:
    which = [id(columns.maps[int(w)]) for w in columns.which[head]]
    return (*which, *columns.column[head].tolist())


def _wide(rows: Tensor, size: int) -> Tensor:
    """Rows of each head, with -1 up to the size of a head."""
    return torch.nn.functional.pad(rows, (0, size - rows.shape[1]), value=-1)


def padded(whole: Tensor, rows: Tensor) -> Tensor:
    """Rows of a matrix or bias; zeros for -1."""
    chosen = whole[rows.clamp(min=0)]
    if bool((rows < 0).any()):
        chosen = torch.where((rows < 0).reshape(-1, *[1] * (whole.ndim - 1)), torch.zeros_like(chosen), chosen)
    return chosen
