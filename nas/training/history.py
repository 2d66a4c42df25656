"""How a training went, epoch by epoch."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass


@dataclass(frozen=True)
class Curve:
    """How a training went.

    train_loss: [epochs] mean of the minimised loss (smoothing, mixup and auxiliary head included).
    lr: [epochs] learning rate of each epoch's last step.
    seconds: [epochs] time spent training, evaluation not included.
    val_epochs: [evaluations] epochs, counted from 1, after which the network was evaluated.
    val_loss, val_acc: [evaluations] mean cross-entropy in nats, and accuracy in [0, 1].
    """

    train_loss: tuple[float, ...] = ()
    lr: tuple[float, ...] = ()
    seconds: tuple[float, ...] = ()
    val_epochs: tuple[int, ...] = ()
    val_loss: tuple[float, ...] = ()
    val_acc: tuple[float, ...] = ()

    def extended(self, report: EpochReport) -> Curve:
        """This curve and one more epoch."""
        longer = dataclasses.replace(
            self,
            train_loss=(*self.train_loss, report.train_loss),
            lr=(*self.lr, report.lr),
            seconds=(*self.seconds, report.seconds),
        )
        if report.val_loss is None or report.val_acc is None:
            return longer
        return dataclasses.replace(
            longer,
            val_epochs=(*self.val_epochs, report.epoch),
            val_loss=(*self.val_loss, report.val_loss),
            val_acc=(*self.val_acc, report.val_acc),
        )


@dataclass(frozen=True)
class EpochReport:
    """One finished epoch, counted from 1 to `epochs`; the fields are those of `Curve`."""

    epoch: int
    epochs: int
    train_loss: float
    lr: float
    seconds: float
    val_loss: float | None = None
    val_acc: float | None = None

    def __str__(self) -> str:
        """In words."""
        return f"epoch {self.epoch}: loss {self.train_loss:.3f}, {self.seconds:.1f} s"
