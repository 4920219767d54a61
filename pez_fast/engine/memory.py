"""Estimates of how many prompts fit into memory at once."""

from __future__ import annotations

import torch

from pez_fast._shared.devices import free_bytes

MEMORY_FRACTION = 0.5  # part of the free memory that a batch may take
SAVED_VALUES = 24  # values that a block saves for the backward pass, per position and dimension


def max_batch_size(device: torch.device, bytes_per_prompt: int) -> int:
    """Returns how many prompts fit into a batch on the device, at least 1."""
    return max(1, int(MEMORY_FRACTION * free_bytes(device)) // max(1, bytes_per_prompt))


def transformer_bytes(blocks: int, positions: int, width: int, bytes_each: int) -> int:
    """Estimates the bytes that one prompt takes, forward and backward.

    Args:
        blocks: transformer blocks.
        positions: tokens of the context that the tower is run over.
        width: dimensions of a position.
        bytes_each: bytes of one value.
    """
    return SAVED_VALUES * blocks * positions * width * bytes_each


def state_bytes(prompt_len: int, width: int, num_steps: int, top_k: int, bytes_each: int) -> int:
    """Returns what one prompt takes as long as it is learned, whether it is evaluated or waits for its chunk.

    These are its scores and their copy for the result, the kept ids, five vectors for each token (the soft embedding,
    its gradient, two moments and the projection) and a target.
    """
    return 2 * bytes_each * (num_steps + 1) + 8 * prompt_len * (top_k + 1) + bytes_each * width * (5 * prompt_len + 1)
