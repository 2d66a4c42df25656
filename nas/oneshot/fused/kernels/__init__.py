"""Kernels for GPUs: chains of ReLU, convolution and batch-norm, pools, and the sums in nodes.

In Triton (`programs`), and in CUDA C++ for depthwise convolutions (`native`); `choice` is between both. One
pass through a cell is a `passage`; its nodes of autograd are in `preparing`, `leaving` and `node`. `launch`
and `mixing_launch` launch the programs on `tiles` of the maps.
"""
