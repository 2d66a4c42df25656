"""How the cells of a network are executed: one operation after the other, or those of a kind together."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from nas.cell import Cell
from nas.errors import ConfigError
from nas.oneshot.fused import settling, verdict
from nas.oneshot.fused.cells import run, run_by_kernels
from nas.oneshot.fused.kernels import native
from nas.oneshot.fused.verdict import Kind
from nas.oneshot.mixed import MixedOp
from nas.progress import Progress
from nas.training.recipe import Execution

DEVICES = ("cpu", "cuda")
"""Where operations run together unless asked otherwise."""
PATIENT_S = 3600.0
"""A job of a shorter budget does not try kernels."""
_RUNS = {"plain": None, "batched": run, "kernels": run_by_kernels}


def resolve(
    wanted: Execution, device: torch.device, kind: Kind = "search", steps: int | None = None
) -> Execution:
    """`plain`, `batched` or `kernels`: as wanted, or the faster one where it is known (see `verdict`).

    steps: how many will be done; enough for kernels to be worth their compilation unless given.

    Raises:
        ConfigError: when kernels are wanted where they cannot run.
    """
    lacking = verdict.lacking(device)
    if wanted == "kernels" and lacking is not None:
        raise ConfigError(f"execution: kernels need CUDA and Triton, but {lacking}; choose batched or auto")
    if wanted != "auto":
        return wanted
    if verdict.uses_kernels(device, kind, steps):
        return "kernels"
    return "batched" if device.type in DEVICES else "plain"


def explain(device: torch.device) -> str:
    """Which path runs on a device unless another is asked for, and why."""
    if device.type not in DEVICES:
        return f"plain: one operation after the other, since nothing else was tried on {device.type}"
    together = "operations of one kind that leave a node in one call, channels last"
    if device.type != "cuda":
        return f"batched: {together}, float32; kernels need CUDA"
    found = f"{together}, bfloat16, steps as CUDA graphs where they can be"
    if (lacking := verdict.lacking(device)) is not None:
        return f"batched: {found}; kernels need Triton, but {lacking}"
    known = verdict.remembered(device)
    chosen = (
        "batched until a first job, or nas doctor --try-kernels, has tried kernels"
        if known is None
        else known
    )
    kernels = f"from {verdict.ENOUGH:,} steps on, depthwise ones in {native.explain(device)}"
    return f"{chosen}; batched: {found}; kernels: {kernels}"


def try_kernels(
    device: torch.device, progress: Progress, *, stop: Callable[[], bool], budget_s: float | None = None
) -> None:
    """Tries kernels on a GPU where nobody has, see `verdict`; for that, a budget must be an hour at least."""
    if verdict.lacking(device) is not None or verdict.remembered(device) is not None:
        return
    if budget_s is not None and budget_s < PATIENT_S:
        progress.note("kernels are not tried in so short a budget; nas doctor --try-kernels does it once")
        return
    found = settling.settle(device, note=progress.note, stop=stop)
    if found is not None:
        progress.note(f"kernels: {found}")


def execute_cells(
    network: nn.Module, wanted: Execution, device: torch.device, steps: int | None = None
) -> None:
    """Makes all cells of a network run so. steps: see `resolve`."""
    mixed = any(isinstance(module, MixedOp) for module in network.modules())
    path = resolve(wanted, device, "search" if mixed else "training", steps)
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
    """Runs a block in which no cell is run by kernels, which have first derivatives only.

    Nor does attention take the library's fast ways, which have no more.
    """
    cells = [m for m in network.modules() if isinstance(m, Cell) and m.execute is run_by_kernels]
    for cell in cells:
        cell.execute = run
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        for cell in cells:
            cell.execute = run_by_kernels
