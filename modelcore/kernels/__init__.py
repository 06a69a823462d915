"""Triton kernels for GPUs, each beside the torch code that it stands for; imported only where there is one."""
