"""The CUDA kernels on the host, for tests."""
