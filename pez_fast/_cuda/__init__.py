"""Floor 0: the operations in CUDA C++ (`pez_fast._C_cuda`), and their Python callers."""
