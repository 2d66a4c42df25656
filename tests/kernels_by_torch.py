"""Convolutions of PyTorch in place of the kernels, which Triton's interpreter takes long for.

And the recording of launches, so that a `tape.Tape` does them again.
"""

import torch
import torch.nn.functional as F

from nas.oneshot.fused.kernels import launch, mixing_launch


def read(source):
    """[G or 1, P, C], before a ReLU."""
    x = source.x if source.x.dim() == 3 else source.x[None]
    return x if source.norm is None else (x - source.norm.mean[:, None]) * source.norm.inv[:, None]


def convolved(x, taps, window, *, relu):
    groups, (height, width), kernel = len(taps), window.before, window.kernel
    x = (x.relu() if relu else x).expand(groups, *x.shape[1:])
    x = x.reshape(groups, window.batch, height, width, -1).permute(1, 0, 4, 2, 3).flatten(1, 2)
    if taps.dim() == 3:
        weight, each = taps.permute(0, 2, 1).reshape(-1, 1, kernel, kernel), x.shape[1]
    else:
        outputs, inputs = taps.shape[3], taps.shape[2]
        weight, each = taps.permute(0, 3, 2, 1).reshape(groups * outputs, inputs, kernel, kernel), groups
    padding = window.dilation * (kernel // 2)
    y = F.conv2d(x, weight, None, window.stride, padding, window.dilation, each)
    return y.unflatten(1, (groups, -1)).permute(1, 0, 3, 4, 2).reshape(groups, window.outputs, -1)


def depthwise(source, taps, window):
    y = convolved(read(source), taps.to(source.x.dtype), window, relu=source.pre > 0)
    # What is not computed is not written, and what was there before may be anything.
    return y if source.on is None else torch.where(computed(source), y, torch.nan)


def computed(source):
    return source.on.view(-1, 1, 1) != 0


def convolve(source, taps, window, *, out, part, block):
    out.data.copy_(depthwise(source, taps, window))  # unseen by autograd, as what kernels write is
    if source.on is not None:
        part.fill_(torch.nan)
    for number, pixels in enumerate(out.float().split(block, dim=1)):
        mean = pixels.mean(1)
        part[:, number, 0], part[:, number, 1] = mean, (pixels - mean[:, None]).square().sum(1)


def gradients(grad, source, taps, window, *, wanted):
    x = read(source).detach()
    if source.on is not None:
        grad = torch.where(computed(source), grad, 0)
        x = x if source.x.dim() == 2 else torch.where(computed(source), x, 0)
    with torch.enable_grad():
        inputs = [x.requires_grad_(), taps.detach().requires_grad_()]
        y = convolved(inputs[0], inputs[1].to(grad.dtype), window, relu=source.pre > 0)
        found = torch.autograd.grad(y, inputs, grad)
    if source.on is not None and source.x.dim() == 3:
        found = (torch.where(computed(source), found[0], torch.nan), found[1])
    return tuple(g if asked else None for g, asked in zip(found, wanted, strict=True))


def stand_in(monkeypatch):
    """Puts them in the place of the kernels."""
    monkeypatch.setattr(launch, "depthwise", depthwise)
    monkeypatch.setattr(launch, "convolve", convolve)
    monkeypatch.setattr(launch, "depthwise_gradients", gradients)
    monkeypatch.setattr(launch, "convolve_gradients", gradients)


class Taped:
    """Programs, of which a tape that is recording notes each launch.

    launched: names of all launches.
    """

    def __init__(self, programs, tape, launched):
        self.programs, self.tape, self.launched = programs, tape, launched

    def __getattr__(self, name):
        return Program(getattr(self.programs, name), name, self.tape, self.launched)


class Program:
    def __init__(self, program, name, tape, launched):
        self.program, self.name, self.tape, self.launched = program, name, tape, launched

    def __getitem__(self, grid):
        def run(*args, **sizes):
            self.launched.append(self.name)
            self.tape.host(lambda: self.program[grid](*args, **sizes))

        return run


def tape_launches(monkeypatch, tape):
    """Names of all launches to come, which the tape notes down."""
    launched = []
    for module in (launch, mixing_launch):
        monkeypatch.setattr(module, "programs", Taped(module.programs, tape, launched))
    return launched
