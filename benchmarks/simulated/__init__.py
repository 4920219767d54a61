"""The CUDA kernels on the host, for tests and for parity.py."""
