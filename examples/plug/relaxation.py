"""A relaxation of your own: from alphas `[E, O]` to the weights that a supernet mixes its options by."""

from dataclasses import dataclass

import torch

import nas
from nas.oneshot.relaxations import Relaxation


@dataclass(frozen=True)
class Sharpening(Relaxation):
    """A softmax that grows sharper: of the alphas over a temperature that falls from `hot` to `cold`."""

    hot: float = 2.0
    cold: float = 0.2

    def mix(self, alphas: torch.Tensor, progress: float | torch.Tensor) -> torch.Tensor:
        return (alphas / (self.hot + (self.cold - self.hot) * progress)).softmax(-1)


def make() -> nas.Method:
    return nas.Method("sharpening", relaxation=Sharpening())


if __name__ == "__main__":
    small = {"epochs": 1, "search_images": 200, "top_k": 1, "baselines": False, "retrain": {"epochs": 1}}
    result = nas.search("toy", "digits", make(), out="results/plug-relaxation", settings=small)
    print("found", result.space.choices(result.genotype))
