"""A space of your own: one function that builds a network and asks `choose` wherever something is open."""

from functools import partial

from torch import nn

import nas


def conv(channels: int, kernel: int) -> nn.Module:
    layer = nn.Conv2d(channels, channels, kernel, padding=kernel // 2, bias=False)
    return nn.Sequential(layer, nn.BatchNorm2d(channels), nn.ReLU())


def make(width: int = 16, classes: int = 10, in_channels: int = 1) -> nas.Space:
    def build(choose: nas.Chooser) -> nn.Module:
        depth = choose.value("depth", [2, 3, 4])
        options = {f"conv_{k}": partial(conv, width, k) for k in (1, 3, 5)}
        body = [choose.op(f"block{i}", options) for i in range(depth)]
        head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, classes)]
        return nn.Sequential(nn.Conv2d(in_channels, width, 3, padding=1), *body, *head)

    return nas.Space("mine", build, default={"depth": "4"} | {f"block{i}": "conv_3" for i in range(4)})


if __name__ == "__main__":
    task = nas.load_task("digits")
    nas.check_space(make(), task.normalise(task.train.x[:8]))
    print("space", make().name, "has", make().size, "architectures")
