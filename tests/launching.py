"""Passes through a small supernet whose launches go to `driver_on_cpu.c` by Triton's own launcher.

To be run by itself, where Triton does not interpret; its launches are on standard output.
"""

import sys

import torch
from torch import nn
from triton.backends.nvidia.driver import CudaDriver
from triton.runtime import driver

torch.cuda.get_device_capability = lambda device=None: (9, 0)
torch.cuda.current_device = lambda: 0
torch._C._cuda_getCurrentRawStream = lambda device: 0x1234
driver.set_active(CudaDriver())

from nas.cell import Cell
from nas.oneshot.fused import trust
from nas.oneshot.fused.cells import run_by_kernels
from nas.oneshot.relaxations import GumbelHard, Softmax
from nas.oneshot.supernet import Supernet
from nas.ops import candidates
from nas.space import Space

OPTIONS = ("none", "skip_connect", "max_pool_3x3", "nor_conv_1x1", "dil_conv_3x3")


def build(choose):
    cell = Cell("c", 1, 2, lambda src, dst: choose.op(f"{src}->{dst}", candidates(OPTIONS, 8, 8)))
    cell.execute = run_by_kernels
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), cell, nn.AdaptiveAvgPool2d(1), nn.Flatten())


trust._tried = lambda *_: True  # nothing is computed that could be compared
for relaxation in (Softmax(), GumbelHard()):
    supernet = Supernet(Space("launching", build), relaxation=relaxation).train()
    for _ in range(2):
        with torch.autocast("cpu", torch.bfloat16):
            out = supernet(torch.randn(2, 3, 4, 4))
        out.sum().backward()
    sys.stdout.flush()
