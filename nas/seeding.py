"""Independent, named random streams from one root seed: `rng(seed, trial.number, "train")`."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def derive(seed: int, *path: int | str) -> int:
    """A 63-bit seed for the stream named by `path`; equal arguments give equal seeds on every machine."""
    text = repr((int(seed), *path)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little") >> 1


def rng(seed: int, *path: int | str) -> np.random.Generator:
    """A numpy generator of its own for the stream named by `path`."""
    return np.random.default_rng(derive(seed, *path))


def torch_rng(seed: int, *path: int | str, device: torch.device | str = "cpu") -> torch.Generator:
    """A torch generator of its own, on `device`, for the stream named by `path`."""
    return torch.Generator(device).manual_seed(derive(seed, *path))


def seed_global(seed: int) -> None:
    """Seeds torch's global streams, of the CPU and of every accelerator."""
    if torch.accelerator.is_available():
        torch.manual_seed(seed)
    else:  # where there is none, torch would format the whole stack for each kind of it, several times a step
        torch.default_generator.manual_seed(seed)


def reseed(seed: int) -> None:
    """Seeds torch's global streams in the middle of a step; not where they are `unseeded`."""
    if not _going_on:
        seed_global(seed)


@contextmanager
def unseeded() -> Iterator[None]:
    """Runs a block in which `reseed` lets the streams go on: a CUDA graph cannot hold a seed."""
    _going_on.append(True)
    try:
        yield
    finally:
        _going_on.pop()


_going_on: list[bool] = []


@contextmanager
def isolated(seed: int, *path: int | str) -> Iterator[None]:
    """Runs a block on torch's global streams seeded from `path`, then puts them back as they were.

    Initialisers, dropout and user code draw from the global streams; inside this block what they draw
    depends on the arguments alone, and nothing leaks out.
    """
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices):
        seed_global(derive(seed, *path))
        yield
