"""Images and a space of one's own: how deep and wide a network for clothes should be, and of which blocks.

Fashion-MNIST where it is installed (Debian: dataset-fashion-mnist), else handwritten digits.

    python examples/images_custom_space.py [FOLDER]
"""

import os
import sys
from functools import partial

from torch import nn

import nas

TINY = "NAS_EXAMPLE_TINY" in os.environ  # as the tests run it


class Residual(nn.Module):
    def __init__(self, channels: int, kernel: int, groups: int) -> None:
        super().__init__()
        conv = nn.Conv2d(channels, channels, kernel, padding=kernel // 2, groups=groups, bias=False)
        self.branch = nn.Sequential(conv, nn.BatchNorm2d(channels), nn.ReLU())

    def forward(self, x):
        return x + self.branch(x)


def make(classes: int = 10, in_channels: int = 1) -> nas.Space:
    def build(choose: nas.Chooser) -> nn.Module:
        width = choose.value("width", [8, 16, 24])
        stages, channels = [], in_channels
        for stage in range(2):
            down = nn.Conv2d(channels, width, 3, stride=2, padding=1, bias=False)
            options = {
                "conv_3x3": partial(Residual, width, 3, 1),
                "depthwise_5x5": partial(Residual, width, 5, width),
                "skip": nn.Identity,
            }
            blocks = [choose.op(f"stage{stage}/block{i}", options) for i in range(3)]
            stages += [down, nn.BatchNorm2d(width), nn.ReLU(), *blocks]
            channels, width = width, 2 * width
        return nn.Sequential(*stages, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes))

    return nas.Space("clothes", build)


def main(out: str = "results/example-images") -> nas.Result:
    try:
        task = nas.load_task("digits" if TINY else "fashion_mnist").reduced(400 if TINY else 6000)
    except nas.DataError:
        task = nas.load_task("digits")
    settings = {
        "trials": 2 if TINY else 8,
        "epochs": 1 if TINY else 2,
        "search_images": 200 if TINY else 1500,
        "top_k": 2 if TINY else 3,
        "repeats": 1,
        "baselines": False,
        "retrain": {"epochs": 1 if TINY else 5},
    }
    space = make(classes=task.num_classes, in_channels=task.image_shape[0])
    result = nas.search(space, task, "evolution", out=out, settings=settings)
    print("found", space.choices(result.genotype))
    print(f"test accuracy {result.metrics['test_acc']:.3f}, {result.metrics['params']:,.0f} parameters")
    print("pictures, weights and history are in", result.folder)
    return result


if __name__ == "__main__":
    main(*sys.argv[1:])
