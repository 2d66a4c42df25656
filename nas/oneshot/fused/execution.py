"""How the cells of a network are executed: one operation after the other, or those of a kind together."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec

import torch
from torch import nn

from nas.cell import Cell
from nas.errors import ConfigError
from nas.oneshot.fused.cells import run, run_by_kernels
from nas.oneshot.fused.kernels import native
from nas.oneshot.mixed import MixedOp
from nas.training.recipe import Execution

DEVICES = ("cpu", "cuda")
"""Where operations run together unless asked otherwise."""
_RUNS = {"plain": None, "batched": run, "kernels": run_by_kernels}


def resolve(wanted: Execution, device: torch.device) -> Execution:
    """`plain`, `batched` or `kernels`: as wanted, or the faster one where it is known.

    Raises:
        ConfigError: when kernels are wanted where they cannot run.
    """
    if wanted == "kernels" and (device.type != "cuda" or find_spec("triton") is None):
        lacking = f"the device is {device}" if device.type != "cuda" else "Triton is not installed"
        raise ConfigError(f"execution: kernels need CUDA and Triton, but {lacking}; choose batched or auto")
    if wanted != "auto":
        return wanted
    return "batched" if device.type in DEVICES else "plain"


def explain(device: torch.device) -> str:
    """Which path runs on a device unless another is asked for, and why."""
    if resolve("auto", device) == "plain":
        return f"plain: one operation after the other, since nothing else was tried on {device.type}"
    arithmetic = "bfloat16, steps as CUDA graphs where they can be" if device.type == "cuda" else "float32"
    found = f"batched: operations of one kind that leave a node in one call, channels last, {arithmetic}"
    if device.type != "cuda":
        return f"{found}; kernels need CUDA"
    if find_spec("triton") is None:
        return f"{found}; kernels need Triton, which is not installed"
    found += "; kernels only where asked for, as their speed was not measured yet"
    return f"{found}; depthwise ones in {native.explain(device)}"


def execute_cells(network: nn.Module, wanted: Execution, device: torch.device) -> None:
    """Makes all cells of a network run so."""
    path = resolve(wanted, device)
    for cell in network.modules():
        if isinstance(cell, Cell):
            cell.execute = _RUNS[path]


def unasked(network: nn.Module) -> bool:
    """Whether kernels run all mixed operations, so that a step need not ask the device what it has drawn."""
    known = {
        id(op)
        for cell in network.modules()
        if isinstance(cell, Cell) and cell.execute is run_by_kernels
        for _, _, op in cell.edges()
    }
    return all(id(op) in known for op in network.modules() if isinstance(op, MixedOp))


@contextmanager
def twice_differentiable(network: nn.Module) -> Iterator[None]:
    """Runs a block in which no cell is run by kernels, which have first derivatives only."""
    cells = [m for m in network.modules() if isinstance(m, Cell) and m.execute is run_by_kernels]
    for cell in cells:
        cell.execute = run
    try:
        yield
    finally:
        for cell in cells:
            cell.execute = run_by_kernels
