"""Kernels for GPUs: chains of ReLU, convolution and batch-norm, pools, and the sums in nodes.

In Triton, and in CUDA C++ for depthwise convolutions.
"""
