"""Kernels for GPUs in Triton: chains of ReLU, convolution and batch-norm, pools, and the sums in nodes."""
