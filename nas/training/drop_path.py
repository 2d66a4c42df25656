"""The drop-path of a network's cells, and how it grows over a training."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nas.errors import ConfigError
from nas.space.cell import Cell
from nas.training.recipe import Recipe


class DropPath:
    """That of a training: none in the first epoch, the recipe's after the last.

    probability: the present one; that of the recipe until `follow` is asked. On CUDA the cells read a scalar
      on the device: in a CUDA graph a number would stay what it was.
    """

    def __init__(self, network: nn.Module, recipe: Recipe, device: torch.device) -> None:
        self._network, self._recipe = network, recipe
        self._scalar = torch.zeros((), device=device)
        self.probability = recipe.drop_path
        set_drop_path(network, self.probability)

    def follow(self, epoch: int) -> None:
        """Sets what an epoch, counted from 0, wants."""
        probability = self._recipe.drop_path * epoch / self._recipe.epochs
        if probability == self.probability:
            return
        self.probability = probability
        if self._scalar.device.type != "cuda" or not probability:
            set_drop_path(self._network, probability)
            return
        self._scalar.fill_(probability)
        set_drop_path(self._network, self._scalar)


def set_drop_path(network: nn.Module, probability: float | Tensor) -> None:
    """Sets the drop-path probability, in [0, 1), of every `Cell` of `network`."""
    cells = [module for module in network.modules() if isinstance(module, Cell)]
    if not cells and (isinstance(probability, Tensor) or probability):
        raise ConfigError(
            f"drop_path is {probability}, but {type(network).__name__} has no Cell to drop paths in; "
            "set it to 0"
        )
    for cell in cells:
        cell.drop_path = probability
