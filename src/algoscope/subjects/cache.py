"""Recorded activations, under every name that people type."""

from collections.abc import Iterator, Mapping

from torch import Tensor

from algoscope.core.sites import Site, find_site
from algoscope.networks.transformer import Tap

Key = str | tuple[str, int]


class ActivationCache(Mapping[Key, Tensor]):
    """Values by site: `cache["pattern", 0]`, `cache["blocks.0.attn.hook_pattern"]`, `cache["resid_post", -1]`."""

    def __init__(self, values: Mapping[Site, Tensor]) -> None:
        self._values = dict(values)

    def __getitem__(self, key: Key) -> Tensor:
        return self._values[find_site(key, list(self._values))]

    def __iter__(self) -> Iterator[str]:
        return (site.name for site in self._values)

    def __len__(self) -> int:
        return len(self._values)


class Recorder(Tap):
    """A listener that keeps what passes at some sites."""

    def __init__(self, sites: frozenset[Site]) -> None:
        self.sites, self.kinds = sites, frozenset(site.kind for site in sites)
        self.values: dict[Site, Tensor] = {}

    def __call__(self, kind: str, layer: int | None, value: Tensor) -> Tensor:
        site = Site(kind, layer)
        if site in self.sites:
            self.values[site] = value
        return value
