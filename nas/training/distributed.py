"""One training over many processes, started by torchrun: what they send each other, and how they part.

In a step nobody waits longer for another than the time limit. Between steps, where rank 0 evaluates and
writes, the others wait as long as it lives. When rank 0 fails it leaves word in the launcher's store, so that
the others need not guess why it went.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from functools import cache
from itertools import count
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.rendezvous import rendezvous

from nas.errors import ConfigError, DismissedError, NasError, RankError, Stopped
from nas.training.checkpoint import decode, encode
from nas.training.ddp import ALONE, Points, Team
from nas.training.launch import launched

AGAIN = "the same command goes on from the last checkpoint"
_EVERY = 50  # agreements between two looks at what is on a GPU
_LONG = timedelta(days=30)
_GRACE_S = 3.0
_LAUNCH = timedelta(minutes=5)
_WORD = "word"
END = "end"
"""The phase after the last one."""
_jobs = count()


@contextmanager
def joined(*, limit_s: float, stop: Callable[[], bool] | None = None) -> Iterator[Team]:
    """The team that this process belongs to while the block runs: itself alone, or the ranks of torchrun.

    limit_s: how long a rank waits for the others within a step.
    stop: asked where this rank waits for a call from rank 0.

    Raises, beside what the block raises:
        DismissedError, Stopped: on the other ranks, when rank 0 has failed or stopped.
        RankError: when another rank is lost.
    """
    found = launched()
    if found is None:
        yield ALONE
        return
    team = Ranks(*found, limit_s=limit_s, stop=stop)
    try:
        yield team
    except Stopped as stopped:
        team.part_ways("stopped", str(stopped), 0)
        raise
    except NasError as error:
        team.part_ways("failed", str(error), error.exit_code)
        raise
    except BaseException as error:
        team.part_ways("failed", repr(error), 1)
        raise
    if team.leads:
        # The work is done: it does not matter any more who has gone before the end.
        with suppress(RankError, Stopped):
            team.call(END)
    dist.destroy_process_group()


class Ranks(Team):
    """The processes that torchrun started, one for each GPU or, on CPUs, as many as it was told to."""

    def __init__(
        self, rank: int, size: int, *, limit_s: float, stop: Callable[[], bool] | None = None
    ) -> None:
        if dist.is_initialized():
            raise ConfigError(
                "a process group exists already: one of your own, or that of a job that failed here; the "
                "engine makes its own, so destroy yours before, or start the ranks anew"
            )
        super().__init__(rank, size, local=int(os.environ.get("LOCAL_RANK", rank)))
        self.limit_s, self._stop = limit_s, stop
        self._noted: list[object] = []
        self._values: Tensor | None = None
        self._agreements = 0
        limit, devices = timedelta(seconds=limit_s), torch.cuda.device_count()
        with self._reaching("find the others"):
            # The launcher's store outlives ranks that it starts again, and jobs that this process has done.
            attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
            self._store = _within(f"nas/{attempt}/{next(_jobs)}", _store())
            dist.init_process_group(
                "cpu:gloo,cuda:nccl" if devices else "gloo",
                store=_within("group", self._store),
                rank=self.rank,
                world_size=self.size,
                # Whoever waits on the host is to say so before NCCL's own watchdog ends the process.
                timeout=2 * limit,
            )
            self._prompt = dist.new_group(backend="gloo", timeout=limit)
            self._patient = dist.new_group(backend="gloo", timeout=_LONG)
        if cast(int, self.local) < devices:
            torch.cuda.set_device(self.local)

    # -- within a step ---------------------------------------------------------------------------------

    def note(self, choices: object, values: Iterable[Tensor] = ()) -> None:
        """Remembers; values by a checksum."""
        self._noted.append(choices)
        self._values = _checksum(values, self._values)

    def agree(self, where: str, facts: object = None) -> None:
        """Compares."""
        self._agreements += 1
        on_gpu = self._values is not None and self._values.is_cuda
        self._compare(where, facts, looks=not on_gpu or self._agreements % _EVERY == 0)

    def average(self, tensors: Sequence[Tensor], batch: int) -> Sequence[Tensor]:
        """In one piece, so that it is one call."""
        if not tensors:
            return tensors
        whole = torch.cat([tensor.detach().flatten() for tensor in tensors])
        whole *= (batch // self.size + (self.rank < batch % self.size)) / batch
        with self._reaching("exchange gradients"):
            dist.all_reduce(whole)
        parts = torch.split(whole, [tensor.numel() for tensor in tensors])
        return [part.view(tensor.shape) for part, tensor in zip(parts, tensors, strict=True)]

    def across(self, points: Points, loss: Callable[[Points], Tensor], batch: int) -> Tensor:
        """By a function whose gradient is the average."""
        spread: Points = _Spread.apply(self, batch, *points)  # type: ignore[no-untyped-call]
        own = loss(spread)
        return own + (self.average([own], batch)[0] - own).detach()

    def any(self, ask: Callable[[], bool] | None) -> bool:
        """Asks all."""
        return any(self._gather(int(ask is not None and ask())))

    # -- between steps ---------------------------------------------------------------------------------

    def same(self, where: str, tensors: Iterable[Tensor]) -> None:
        """Compares checksums, and with them all that was noted on a GPU."""
        checksum = _checksum(tensors, None)
        self._compare(where, None if checksum is None else int(checksum), looks=True)

    def handed(self, state: Callable[[], Mapping[str, Any]]) -> dict[str, Any] | None:
        """By one broadcast; the others wait for it as long as rank 0 lives."""
        if self.leads:
            self._send(encode(state()), stoppable=False)
            return None
        return decode(self._receive(stoppable=False), "the state of rank 0")

    def call(self, phase: str, value: Any = None) -> None:  # noqa: ANN401
        """Sends the call by a broadcast, or waits for it."""
        if self.leads:
            self._send(json.dumps([phase, value]).encode(), stoppable=True)
        elif (found := self.called()[0]) != phase:
            raise RankError(f"rank {self.rank} waits for {phase!r}, but rank 0 calls to {found!r}; {AGAIN}")

    def called(self) -> tuple[str, Any]:
        """By the same broadcast."""
        phase, value = json.loads(self._receive(stoppable=True))
        return phase, value

    def part_ways(self, how: str, text: str, code: int) -> None:
        """As rank 0 leaves word why the job ends; otherwise raises what rank 0 has ended with, if it has."""
        if self.leads:
            with suppress(RuntimeError):  # the store has gone, and with it whoever could read it
                self._store.set(_WORD, json.dumps([how, text, code]))
            return
        until = time.monotonic() + _GRACE_S
        while how == "failed" and self._waits_for_word() and time.monotonic() < until:
            time.sleep(0.05)

    # -- helpers ---------------------------------------------------------------------------------------

    def _compare(self, where: str, facts: object, *, looks: bool) -> None:
        seen = int(self._values) if looks and self._values is not None else 0
        stated = repr((where, facts, self._noted, seen)).encode()
        self._noted.clear()
        digest = hashlib.blake2b(stated, digest_size=8).digest()
        found = self._gather(int.from_bytes(digest, "little", signed=True))
        if odd := [rank for rank, number in enumerate(found) if number != found[0]]:
            who = f"rank {odd[0]} does" if len(odd) == 1 else f"ranks {', '.join(map(str, odd))} do"
            raise RankError(
                f"{where}: {who} not agree with rank 0 on what is trained; all ranks need the same command, "
                f"versions, data and kind of device; {AGAIN}"
            )

    def _gather(self, number: int) -> list[int]:
        """The numbers of all ranks."""
        found = [torch.empty(1, dtype=torch.int64) for _ in range(self.size)]
        with self._reaching("compare steps with the others"):
            dist.all_gather(found, torch.tensor([number]), group=self._prompt)
        return [int(n) for n in found]

    def _send(self, data: bytes, *, stoppable: bool) -> None:
        self._broadcast(torch.tensor([len(data)]), stoppable=stoppable)
        self._broadcast(torch.frombuffer(bytearray(data), dtype=torch.uint8), stoppable=stoppable)

    def _receive(self, *, stoppable: bool) -> bytes:
        length = self._broadcast(torch.zeros(1, dtype=torch.int64), stoppable=stoppable)
        found = self._broadcast(torch.empty(int(length), dtype=torch.uint8), stoppable=stoppable)
        return found.numpy().tobytes()

    def _broadcast(self, tensor: Tensor, *, stoppable: bool) -> Tensor:
        """From rank 0.

        stoppable: whether nothing is lost when this rank goes. Where something is, the others should be here
          when rank 0 comes, and it waits no longer for them than in a step.
        """
        limit_s = self.limit_s if self.leads and not stoppable else math.inf
        begun = time.monotonic()
        with self._reaching("meet the others"):
            work = dist.broadcast(tensor, 0, group=self._patient, async_op=True)
            for turn in count(1):
                if work.is_completed():
                    break
                if stoppable and self._stop is not None and self._stop():
                    raise Stopped(f"rank {self.rank} stopped while it waited for another one")
                if turn % 50 == 0 and not self.leads:
                    self._waits_for_word()
                if time.monotonic() - begun > limit_s:
                    raise RuntimeError("timed out")
                time.sleep(0.02)
            work.wait()
        return tensor

    def _waits_for_word(self) -> bool:
        """Raises what rank 0 has ended with, if it has left word; else says whether it still can."""
        try:
            word = self._store.get(_WORD) if self._store.check([_WORD]) else b""
        except RuntimeError:  # the store has gone with rank 0
            return False
        if not word:
            return True
        how, text, code = json.loads(word)
        if how == "stopped":
            raise Stopped(f"rank 0: {text}")
        raise DismissedError(f"rank 0: {text}", code)

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


class _Spread(torch.autograd.Function):
    """The points as they are; their gradient is the average over the ranks."""

    @staticmethod
    def forward(ctx: Any, team: Ranks, batch: int, *points: Tensor) -> tuple[Tensor, ...]:  # noqa: ANN401
        ctx.team, ctx.batch = team, batch
        return tuple(point.view_as(point) for point in points)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        return None, None, *ctx.team.average(gradients, ctx.batch)


@cache
def _store() -> Any:  # noqa: ANN401 - a class that torch.distributed does not export to type checkers
    """The store of the launcher; one for the life of a process."""
    store, _, _ = next(rendezvous("env://", timeout=_LAUNCH))
    return store


def _within(name: str, store: Any) -> Any:  # noqa: ANN401
    """The store under a prefix."""
    return dist.PrefixStore(name, store)  # type: ignore[attr-defined]


def _checksum(values: Iterable[Tensor], before: Tensor | None) -> Tensor | None:
    """A number that follows every bit of float32 tensors and their order; on their device."""
    for value in values:
        bits = value.detach().float().flatten().view(torch.int32).long()
        place = torch.arange(1, len(bits) + 1, device=bits.device)
        own = (bits * place).sum()
        before = own if before is None else before * 31 + own
    return before
