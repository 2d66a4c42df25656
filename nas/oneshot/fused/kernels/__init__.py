"""Kernels for GPUs in Triton: whole chains of ReLU, convolution and batch-norm of a group of operations."""
