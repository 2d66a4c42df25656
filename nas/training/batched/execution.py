"""How the cells of a network are executed: one operation after the other, or those of a kind together."""

from __future__ import annotations

import torch
from torch import nn

from nas.space.cell import Cell
from nas.training.batched.cells import run
from nas.training.recipe import Execution

DEVICES = ("cpu", "cuda")
"""Where operations run together unless asked otherwise."""


def resolve(wanted: Execution, device: torch.device) -> Execution:
    """`plain` or `batched`, as wanted; `auto` is the one that is faster on the device."""
    if wanted != "auto":
        return wanted
    return "batched" if device.type in DEVICES else "plain"


def explain(device: torch.device) -> str:
    """Which way cells run on a device unless another is asked for, and why."""
    if device.type not in DEVICES:
        return f"plain: one operation after the other, since nothing else was tried on {device.type}"
    together = "batched: operations of one kind that leave a node in one call, channels last"
    if device.type != "cuda":
        return f"{together}, float32"
    return f"{together}, bfloat16, steps as CUDA graphs where they can be"


def execute_cells(network: nn.Module, wanted: Execution, device: torch.device) -> None:
    """Makes all cells of a network run so."""
    way = run if resolve(wanted, device) == "batched" else None
    for cell in network.modules():
        if isinstance(cell, Cell):
            cell.execute = way
