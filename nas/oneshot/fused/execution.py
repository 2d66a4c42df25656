"""How the cells of a network are executed: one operation after the other, or those of a kind together."""

from __future__ import annotations

import torch
from torch import nn

from nas.cell import Cell
from nas.oneshot.fused.cells import run
from nas.recipe import Execution

DEVICES = ("cpu", "cuda")
"""Where operations run together unless asked otherwise."""


def resolve(wanted: Execution, device: torch.device) -> Execution:
    """`plain` or `batched`: as wanted, or the faster one where it is known."""
    if wanted != "auto":
        return wanted
    return "batched" if device.type in DEVICES else "plain"


def explain(device: torch.device) -> str:
    """Which path runs on a device unless another is asked for, and why."""
    if resolve("auto", device) == "plain":
        return f"plain: one operation after the other, since nothing else was tried on {device.type}"
    arithmetic = "bfloat16" if device.type == "cuda" else "float32"
    return f"batched: operations of one kind that leave a node run in one call, channels last, {arithmetic}"


def execute_cells(network: nn.Module, wanted: Execution, device: torch.device) -> None:
    """Makes all cells of a network run so."""
    for cell in network.modules():
        if isinstance(cell, Cell):
            cell.execute = run if resolve(wanted, device) == "batched" else None
