"""Floor 0: the operations in Triton, for NVIDIA GPUs; `pez_fast._triton` when installed. One module per operation."""
