"""Kernels for GPUs: whole chains of ReLU, convolution and batch-norm of a group of operations.

In Triton, and in CUDA C++ for depthwise convolutions.
"""
