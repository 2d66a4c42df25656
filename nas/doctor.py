"""What this machine offers to the engine."""

from __future__ import annotations

import os

import torch

from nas import devices
from nas.data import datasets
from nas.environment import environment
from nas.errors import ConfigError, NasError
from nas.oneshot.fused import execution, verdict


def examine(*, try_kernels: bool = False) -> dict[str, str]:
    """Versions, devices, memory, and which data sets can be loaded, each finding in words.

    try_kernels: whether kernels are tried on the GPU now, and anew.
    """
    device = devices.resolve("auto")
    findings = {name: str(value) for name, value in environment(device).items() if value is not None}
    findings["cores"] = str(os.cpu_count())
    findings["devices"] = ", ".join(devices.available())
    if try_kernels and verdict.settle(device, anew=True) is None:
        why = verdict.lacking(device) or "the GPU has no memory left, or what comes of it cannot be kept"
        raise ConfigError(f"kernels cannot be tried: {why}")
    findings["execution"] = execution.explain(device)
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        findings["memory"] = f"{free / 2**30:.1f} of {total / 2**30:.1f} GiB free"
    for name in ("digits", "fashion_mnist", "cifar10", "cifar100"):
        findings[f"task {name}"] = _readable(name)
    return findings


def _readable(name: str) -> str:
    try:
        source = datasets.read(name)
    except NasError as error:
        return f"no: {error}"
    return f"yes, {len(source.x_train)} training images"
