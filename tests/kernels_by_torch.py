"""Convolutions of PyTorch in place of the kernels, which Triton's interpreter takes long for.

And the recording of launches, so that a `tape.Tape` does them again.
"""

import ctypes
import math
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import _disable_current_modes

from nas.oneshot.fused.kernels import launch, mixing_launch

PROGRAMS = (
    *((launch, name) for name in ("depthwise_programs", "dense_programs", "norm_programs")),
    *((mixing_launch, name) for name in ("node_programs", "pool_programs")),
)
"""Where launches find them."""


def read(source, g):
    """[P, C] of an operation, before a ReLU."""
    x = source.x[g % source.maps] if source.x.dim() == 3 else source.x
    return x if source.norm is None else (x * source.norm.scale[g] + source.norm.shift[g]).to(x.dtype)


@_disable_current_modes()
def kernel(taps, g, *, depthwise):
    """The weight of an operation, where its module keeps it: a program reads that without waiting."""
    side, dilation = taps.kinds[int(taps.kind[g])]
    inputs = 1 if depthwise else taps.inputs
    if taps.half:
        weight = torch.zeros(taps.outputs, inputs, 2, 2)
        weight[: taps.half, :, 0, 0] = numbers(taps.addresses[2 * g], taps.half, inputs)
        weight[taps.half :, :, 1, 1] = numbers(taps.addresses[2 * g + 1], taps.outputs - taps.half, inputs)
        return weight, dilation
    if taps.last:
        return numbers(taps.addresses[g], taps.outputs, side, side, inputs).permute(0, 3, 1, 2), dilation
    return numbers(taps.addresses[g], taps.outputs, inputs, side, side), dilation


def numbers(address, *shape):
    """float32, where a module keeps them."""
    found = (ctypes.c_float * math.prod(shape)).from_address(int(address))
    return torch.from_numpy(np.ctypeslib.as_array(found)).view(shape)


def convolved(x, weight, dilation, window, *, relu):
    (height, width), groups = window.before, x.shape[1] // weight.shape[1]
    x = (x.relu() if relu else x).view(window.batch, height, width, -1).permute(0, 3, 1, 2)
    padding = dilation * (weight.shape[-1] // 2)
    if weight.shape[-1] == 2:  # the second tap of halves may lie outside
        x, padding = F.pad(x, (0, width % 2, 0, height % 2)), 0
    y = F.conv2d(x.to(weight), weight, None, window.stride, padding, dilation, groups)
    return y.permute(0, 2, 3, 1).reshape(window.outputs, -1)


def made(source, taps, window, *, depthwise=True):
    maps = [
        convolved(read(source, g), weight.to(source.x.dtype), dilation, window, relu=source.pre > 0)
        for g in range(taps.groups)
        for weight, dilation in [kernel(taps, g, depthwise=depthwise)]
    ]
    # What is not computed is not written, and what was there before may be anything.
    return torch.where(computed(source, taps), torch.stack(maps), torch.nan)


def computed(source, taps):
    """[G, 1, 1] Which operations are."""
    if source.drawn is None:
        return torch.ones(taps.groups, 1, 1, dtype=torch.bool)
    on = torch.zeros(taps.groups, dtype=torch.int32)
    return on.index_copy(0, source.drawn.order.long(), source.drawn.live).ne(0).view(-1, 1, 1)


def convolve(source, taps, window, *, out, after):
    # Unseen by autograd, as what kernels write is.
    out.data.copy_(made(source, taps, window, depthwise=False))
    var, mean = torch.var_mean(out.float(), 1, correction=0)
    inv = 1 / (var + after.eps).sqrt()
    weight, bias = (1, 0) if after.affine is None else factors(after.affine, *mean.shape)
    more = window.outputs / max(window.outputs - 1, 1)
    found = [mean, more * var, inv, weight * inv, bias - weight * inv * mean]
    on = computed(source, taps).squeeze(1)
    for own, now in zip(after.norm.tensors, found, strict=True):
        own.data.copy_(torch.where(on, now, own))


@_disable_current_modes()
def factors(affine, groups, channels):
    """[G, C] Weights and biases of batch-norms, where their modules keep them: as `kernel`."""
    both = affine.weights, affine.biases
    return [torch.stack([numbers(own[g], channels) for g in range(groups)]) for own in both]


def gradients(grad, source, taps, window, *, for_x, part, depthwise):
    on, found = computed(source, taps), []
    for g in range(taps.groups):
        weight, dilation = kernel(taps, g, depthwise=depthwise)
        own = torch.where(on[g], grad[g], 0)
        x = torch.where(on[g], read(source, g).detach(), 0).requires_grad_()
        with torch.enable_grad():
            weight = weight.detach().clone().requires_grad_()
            y = convolved(x, weight.to(grad.dtype), dilation, window, relu=source.pre > 0)
            dx, dw = torch.autograd.grad(y, [x, weight], own)
        found.append(dx)
        if part is not None:
            for at, own in gradients_of_kernel(taps, g, dw):
                with _disable_current_modes():
                    place = int(taps.places[at])
                part[:, place : place + len(own)].zero_()
                part[0, place : place + len(own)] = own
    if not for_x:
        return None
    if not source.apart:
        of_maps = [sum(found[m :: source.maps]) for m in range(source.maps)]
        return torch.where(on.any(), torch.stack(of_maps), torch.nan)
    return torch.where(on, torch.stack(found), torch.nan)


def gradients_of_kernel(taps, g, dw):
    """Of each kernel of an operation: its number, and the gradient in the order of memory."""
    if taps.half:
        return [(2 * g, dw[: taps.half, :, 0, 0].flatten()), (2 * g + 1, dw[taps.half :, :, 1, 1].flatten())]
    return [(g, dw.permute(0, 2, 3, 1).flatten() if taps.last else dw.flatten())]


def stand_in(monkeypatch):
    """Puts them in the place of the kernels."""
    monkeypatch.setattr(launch, "depthwise", made)
    monkeypatch.setattr(launch, "convolve", convolve)
    monkeypatch.setattr(launch, "depthwise_gradients", partial(gradients, depthwise=True))
    monkeypatch.setattr(launch, "convolve_gradients", partial(gradients, depthwise=False))


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
    for module, name in PROGRAMS:
        monkeypatch.setattr(module, name, Taped(getattr(module, name), tape, launched))
    return launched
