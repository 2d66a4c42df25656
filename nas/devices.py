"""Where and how networks run: from `auto`, `cpu`, `cuda`, `cuda:1` or `mps` to a device that exists."""

from __future__ import annotations

import gc
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from nas.errors import ConfigError, counted


def resolve(name: str, *, local: int | None = None) -> torch.device:
    """The device of that name; `auto` is the first GPU, else the CPU.

    local: the number of this process among those of its machine that train together; each has the GPU of its
      number.

    Raises:
        ConfigError: when there is no such device, with those that exist.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if local is not None and name.startswith("cuda") and (gpus := torch.cuda.device_count()):
        if name != "cuda" or local >= gpus:
            raise ConfigError(
                f"device is {name!r} on local rank {local} of a machine with {gpus} GPUs, but every "
                f"rank needs one of its own; start torchrun with --nproc-per-node {gpus} and --device cuda"
            )
        return torch.device("cuda", local)
    # "cuda" is the current one of the GPUs.
    known = [*available(), *(["cuda"] if torch.cuda.is_available() else [])]
    if name not in known:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        hint = f" (CUDA_VISIBLE_DEVICES is {visible!r})" if visible is not None else ""
        raise ConfigError(f"no device {name!r}; this machine has {', '.join(available())}{hint}")
    return torch.device(name)


def available() -> list[str]:
    """Names of the devices that exist."""
    gpus = [f"cuda:{i}" for i in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    return ["cpu", *gpus, *(["mps"] if torch.backends.mps.is_available() else [])]


def without_cuda() -> str:
    """Why there is no CUDA device, as far as torch knows."""
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is built without CUDA; an NVIDIA GPU needs a build with it"
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    hint = f"; CUDA_VISIBLE_DEVICES is {visible!r}" if visible is not None else ""
    return f"torch is built for CUDA {torch.version.cuda}, but sees no GPU (does nvidia-smi?){hint}"


def describe(device: torch.device) -> str:
    """The hardware behind a device, in words."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"{platform.processor() or platform.machine()}, {counted(threads, 'thread')}"


def synchronise(device: torch.device) -> None:
    """Waits until the device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def release() -> None:
    """Gives back what nothing refers to any more, after memory ran out."""
    gc.collect()  # networks refer to themselves in circles
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


@contextmanager
def repeatable(*, enabled: bool) -> Iterator[None]:
    """Runs a block in which PyTorch uses only what gives the same bits on every run, where it has a choice.

    On CUDA this is slower, and an operation without such a form raises RuntimeError; on the CPU all of ours
    are so anyway. Has to begin before the first product of matrices on CUDA to reach cuBLAS.
    """
    if not enabled:
        yield
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(mode=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(mode=before)


@contextmanager
def exact() -> Iterator[None]:
    """Runs a block in which float32 on CUDA is not rounded to TensorFloat-32."""
    places: tuple[Any, ...] = (torch.backends.cudnn.conv, torch.backends.cuda.matmul)  # type: ignore[attr-defined]
    before = [place.fp32_precision for place in places]
    for place in places:
        place.fp32_precision = "ieee"
    try:
        yield
    finally:
        for place, value in zip(places, before, strict=True):
            place.fp32_precision = value


@contextmanager
def evaluating(*networks: nn.Module) -> Iterator[None]:
    """Runs a block with networks in evaluation mode, then gives every module its own mode back."""
    modes = {module: module.training for network in networks for module in network.modules()}
    for network in networks:
        network.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training
