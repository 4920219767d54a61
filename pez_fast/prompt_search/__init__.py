"""The search for prompts through stages, and the final choice among the prompts that it met."""

from pez_fast.prompt_search.progress import progress_of
from pez_fast.prompt_search.running import NOT_BEGUN, NOT_FINITE, PromptSearch, search

__all__ = ["NOT_BEGUN", "NOT_FINITE", "PromptSearch", "progress_of", "search"]
