"""Floor 0: the operations in C++ for CPUs (`pez_fast._C`), and their Python callers."""
