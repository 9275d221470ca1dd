"""Recorded activations, accessible under every name of their sites."""

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from algoscope.core.errors import UnknownNameError
from algoscope.core.sites import Key, Site, find_site
from algoscope.networks.taps import Tap


class ActivationCache(Mapping[Key, Tensor]):
    """Values by site: `cache["pattern", 0]`, `cache["blocks.0.attn.hook_pattern"]`, `cache["resid_post", -1]`."""

    def __init__(self, values: Mapping[Site, Tensor], sites: Sequence[Site]) -> None:
        self._values, self._sites = dict(values), sites

    def __getitem__(self, key: Key) -> Tensor:
        """Raises UnknownNameError for an unknown site, and for one that was not recorded."""
        site = find_site(key, self._sites)
        if site not in self._values:
            raise UnknownNameError("recorded site", site.name, [recorded.name for recorded in self._values])
        return self._values[site]

    def __iter__(self) -> Iterator[str]:
        return (site.name for site in self._values)

    def __len__(self) -> int:
        return len(self._values)


class Recorder(Tap):
    """A tap that records the activations at some sites."""

    def __init__(self, sites: frozenset[Site]) -> None:
        self.sites = sites
        self.kinds, self.layers = frozenset(site.kind for site in sites), frozenset(site.layer for site in sites)
        self.values: dict[Site, Tensor] = {}

    def __call__(self, kind: str, layer: int | None, value: Tensor) -> Tensor:
        site = Site(kind, layer)
        if site in self.sites:
            if torch.is_grad_enabled() and not value.requires_grad:  # of weights and positions alone
                value = value.detach().clone().requires_grad_()
            elif torch.is_grad_enabled():
                value.retain_grad()
            self.values[site] = value
        return value
