"""Zero-cost proxies: pure functions `(network, batch) -> float` of an untrained network, larger is better.

They are meant for networks as torch initialises them. None is good on every space: on NAS-Bench-201
`synflow` and `nwot` follow accuracy closely, in the space of DARTS hardly at all.
"""

from collections.abc import Mapping
from types import MappingProxyType

from nas.proxies.activations import nwot, swap
from nas.proxies.batch import Batch, draw_batch
from nas.proxies.gradients import fisher, grad_norm, grasp, plain, snip
from nas.proxies.jacobian import epe, jacov
from nas.proxies.magnitude import l2_norm, macs, params
from nas.proxies.measure import Proxy
from nas.proxies.ranks import DEFAULT, log_rank
from nas.proxies.synflow import logsynflow, synflow
from nas.proxies.zen import zen
from nas.proxies.zico import zico

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
