"""Floor 0: the operations in plain torch; runs wherever torch runs. One module per operation."""
