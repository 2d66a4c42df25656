"""Data parallel: the processes that torchrun started train one network, each on a part of every batch.

All ranks draw the same numbers and average their gradients, so that all do the same steps. After every epoch
their weights are compared, and rank 0, which alone evaluates, writes and decides, hands out its state.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from itertools import count
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.rendezvous import rendezvous

from nas.errors import ConfigError, DismissedError, NasError, RankError, Stopped
from nas.seeding import derive, seed_global
from nas.training.checkpoint import decode, encode
from nas.training.launch import launched

AGAIN = "the same command goes on from the last checkpoint"
END = "end"
"""The phase of a job after the last one."""
_LAUNCH, _LONG = timedelta(minutes=5), timedelta(days=30)
_GRACE_S = 3.0
"""How long word from rank 0 is waited for by a rank that has failed."""
_WORD = "word"
_jobs = count()


class Team:
    """The ranks 0 to `size - 1` of a training; by default a process alone, which has nobody to talk to.

    local: which of its machine's GPUs a rank has; None where there is only one rank.
    limit_s: how long a rank waits for another one within a step. Between steps, where rank 0 evaluates and
      writes, the others wait as long as it lives.

    Every method but `part`, `images` and `apart` is called by all ranks, in the same order.
    """

    def __init__(
        self, rank: int = 0, size: int = 1, *, local: int | None = None, limit_s: float = 600.0
    ) -> None:
        self.rank, self.size, self.local, self.limit_s = rank, size, local, limit_s

    @property
    def leads(self) -> bool:
        """Whether this is rank 0."""
        return self.rank == 0

    def images(self, batch: int) -> int:
        """How many images the largest part of a batch has.

        Raises:
            ConfigError: when a rank would hold a single image, of which batch-norm can take no statistics.
        """
        if self.size > 1 and batch < 2 * self.size:
            raise ConfigError(
                f"train: a batch of {batch} leaves {self.size} ranks fewer than 2 images each; use a batch "
                f"of at least {2 * self.size}, or fewer ranks"
            )
        return -(-batch // self.size)

    def part(self, batch: int) -> slice:
        """This rank's part of so many images, next to that of the rank before; one is larger by at most 1."""
        share, over = divmod(batch, self.size)
        first = self.rank * share + min(self.rank, over)
        return slice(first, first + share + (self.rank < over))

    def apart(self, seed: int) -> None:
        """From here on each rank draws its own numbers from torch's global stream, not those of rank 0."""
        if not self.leads:
            seed_global(derive(seed, "rank", self.rank))

    def agree(self, where: str, facts: object) -> None:
        """Raises RankError, which names the ranks, unless all state the same: plain values with a `repr`."""
        digest = hashlib.blake2b(repr(facts).encode(), digest_size=8).digest()
        found = self._gather(int.from_bytes(digest, "little", signed=True))
        if odd := [rank for rank, number in enumerate(found) if number != found[0]]:
            who = f"rank {odd[0]} does" if len(odd) == 1 else f"ranks {', '.join(map(str, odd))} do"
            raise RankError(
                f"{where}: {who} not agree with rank 0 on what is trained; all ranks need the same command, "
                f"versions, data and kind of device; {AGAIN}"
            )

    def same(self, where: str, tensors: Iterable[Tensor]) -> None:
        """Raises RankError, which names the ranks, unless float32 tensors are the same on all to the bit."""
        if self.size > 1:
            self.agree(where, torch.stack([_checksum(tensor) for tensor in tensors]).tolist())

    def average(self, tensors: Sequence[Tensor], batch: int) -> list[Tensor]:
        """The means over a batch of so many images of what are means over the ranks' parts of it."""
        if self.size == 1 or not tensors:
            return [*tensors]
        whole = torch.cat([tensor.detach().flatten() for tensor in tensors])
        whole *= (batch // self.size + (self.rank < batch % self.size)) / batch
        with self._reaching("exchange gradients"):
            dist.all_reduce(whole)
        parts = torch.split(whole, [tensor.numel() for tensor in tensors])
        return [part.view(tensor.shape) for part, tensor in zip(parts, tensors, strict=True)]

    def any(self, ask: Callable[[], bool] | None) -> bool:
        """Whether any rank answers yes; None is no."""
        return any(self._gather(int(ask is not None and ask())))

    def handed(self, state: Callable[[], Mapping[str, Any]]) -> dict[str, Any] | None:
        """On all but rank 0 the state that rank 0 has, on rank 0 None.

        state: see `nas.training.checkpoint.pack`; asked on rank 0 only.
        """
        if self.size > 1:
            data = self._broadcast(encode(state()) if self.leads else b"")
        return None if self.leads else decode(data, "the state of rank 0")

    def call(self, phase: str, value: Any = None) -> None:  # noqa: ANN401 - whatever JSON can hold
        """Calls the other ranks to a phase of the job, with a value for JSON; these wait for that call."""
        if not self.leads:
            if (found := self.called()[0]) != phase:
                raise RankError(
                    f"rank {self.rank} waits for {phase!r}, but rank 0 calls to {found!r}; {AGAIN}"
                )
        elif self.size > 1:
            self._broadcast(json.dumps([phase, value]).encode())

    def called(self) -> tuple[str, Any]:
        """On another rank than 0, the next phase that rank 0 calls to, and its value."""
        phase, value = json.loads(self._broadcast(b""))
        return phase, value

    def connect(self) -> None:
        """Finds the other ranks, and keeps to the GPU of its own where there is one for each."""
        limit, gpus = timedelta(seconds=self.limit_s), torch.cuda.device_count()
        with self._reaching("find the others"):
            store, _, _ = next(rendezvous("env://", timeout=_LAUNCH))
            # The launcher's store outlives the jobs that this process has done.
            self._store = dist.PrefixStore(f"nas/{next(_jobs)}", store)  # type: ignore[attr-defined]
            dist.init_process_group(
                "cpu:gloo,cuda:nccl" if gpus else "gloo",
                store=dist.PrefixStore("group", self._store),  # type: ignore[attr-defined]
                rank=self.rank,
                world_size=self.size,
                # Whoever waits on the host is to say so before NCCL's own watchdog ends the process.
                timeout=2 * limit,
            )
            self._prompt = dist.new_group(backend="gloo", timeout=limit)
            # Where rank 0 comes to the others, these should be there.
            self._patient = dist.new_group(backend="gloo", timeout=limit if self.leads else _LONG)
        if self.local is not None and self.local < gpus:
            torch.cuda.set_device(self.local)

    def part_ways(self, error: BaseException) -> None:
        """As rank 0 leaves word in the launcher's store why the job ends; another rank looks for that word.

        Raises:
            DismissedError, Stopped: on another rank, when rank 0 has failed or stopped.
        """
        if self.leads:
            code = error.exit_code if isinstance(error, NasError) else 1
            text = str(error) if isinstance(error, NasError | Stopped) else repr(error)
            word = json.dumps([text, None if isinstance(error, Stopped) else code])
            with suppress(RuntimeError):  # the store has gone, and with it whoever could read it
                self._store.set(_WORD, word)
        elif not isinstance(error, Stopped):
            with suppress(RuntimeError):  # there is no word, or the store has gone with rank 0
                self._store.wait([_WORD], timedelta(seconds=_GRACE_S))
                text, code = json.loads(self._store.get(_WORD))
                raise Stopped(f"rank 0: {text}") if code is None else DismissedError(f"rank 0: {text}", code)

    def _gather(self, number: int) -> list[int]:
        """The numbers of all ranks."""
        if self.size == 1:
            return [number]
        found = [torch.empty(1, dtype=torch.int64) for _ in range(self.size)]
        with self._reaching("compare steps with the others"):
            dist.all_gather(found, torch.tensor([number]), group=self._prompt)
        return [int(n) for n in found]

    def _broadcast(self, data: bytes) -> bytes:
        """The bytes that rank 0 gives; those of the other ranks are not read."""
        with self._reaching("meet the others"):
            length = torch.tensor([len(data)])
            dist.broadcast(length, 0, group=self._patient)
            whole = torch.frombuffer(bytearray(data or int(length)), dtype=torch.uint8)
            dist.broadcast(whole, 0, group=self._patient)
        return whole.numpy().tobytes()

    @contextmanager
    def _reaching(self, what: str) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:  # all of torch.distributed's are
            # Of "[file:line] Read error [address]: Connection reset by peer. This is typically ..."
            reason = str(error).split("] ", 1)[-1].split(". ")[0].splitlines()[0]
            raise RankError(
                f"cannot {what}: another of {self.size} ranks is lost, or has not answered within "
                f"{self.limit_s:g} s ({reason}); {AGAIN}"
            ) from error


ALONE = Team()


@contextmanager
def joined(*, limit_s: float) -> Iterator[Team]:
    """The team that this process belongs to while the block runs: itself alone, or the ranks of torchrun.

    limit_s: how long a rank waits for the others within a step.

    Raises, beside what the block raises:
        DismissedError, Stopped: on the other ranks, when rank 0 has failed or stopped.
        RankError: when another rank is lost.
    """
    found = launched()
    if found is None:
        yield ALONE
        return
    if dist.is_initialized():
        raise ConfigError(
            "a process group exists already: one of your own, or that of a job that failed here; the "
            "engine makes its own, so destroy yours before, or start the ranks anew"
        )
    team = Team(*found, local=int(os.environ.get("LOCAL_RANK", found[0])), limit_s=limit_s)
    team.connect()
    try:
        yield team
    except BaseException as error:
        team.part_ways(error)
        raise
    if team.leads:
        with suppress(RankError):  # the work is done: who has gone before the end does not matter
            team.call(END)
    dist.destroy_process_group()


def _checksum(tensor: Tensor) -> Tensor:
    """A number that follows every bit of a float32 tensor and their order; on its device."""
    bits = tensor.detach().float().flatten().view(torch.int32).long()
    return (bits * torch.arange(1, len(bits) + 1, device=bits.device)).sum()
