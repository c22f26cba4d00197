"""Kernels for NVIDIA GPUs, in Triton, compiled on the user's machine without a C compiler.

Not the model: what a layer computes, and in which order, is written in `localr1.models`.
"""
