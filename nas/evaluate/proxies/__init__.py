"""Zero-cost proxies: pure functions `(network, batch) -> float` of an untrained network, larger is better.

They are meant for networks as torch initialises them. None is good on every space: on NAS-Bench-201
`synflow` and `nwot` follow accuracy closely, in the space of DARTS hardly at all.
"""

from collections.abc import Mapping
from types import MappingProxyType

from nas.evaluate.proxies.activations import epe, jacov, nwot, swap, zen
from nas.evaluate.proxies.base import DEFAULT, Batch, Proxy, draw_batch, log_rank
from nas.evaluate.proxies.gradients import (
    fisher,
    grad_norm,
    grasp,
    l2_norm,
    logsynflow,
    macs,
    params,
    plain,
    snip,
    synflow,
    zico,
)

PROXIES: Mapping[str, Proxy] = MappingProxyType(
    {
        "params": params,
        "macs": macs,
        "l2_norm": l2_norm,
        "grad_norm": grad_norm,
        "snip": snip,
        "grasp": grasp,
        "fisher": fisher,
        "plain": plain,
        "jacov": jacov,
        "epe": epe,
        "synflow": synflow,
        "logsynflow": logsynflow,
        "nwot": nwot,
        "swap": swap,
        "zen": zen,
        "zico": zico,
    }
)

__all__ = ["DEFAULT", "PROXIES", "Batch", "Proxy", "draw_batch", "log_rank"]
