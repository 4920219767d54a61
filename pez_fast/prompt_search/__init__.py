"""From objectives to prompts: the search over stages, and the choice among what it met."""

from pez_fast.prompt_search.running import NOT_BEGUN, NOT_FINITE, PromptSearch, search

__all__ = ["NOT_BEGUN", "NOT_FINITE", "PromptSearch", "search"]
