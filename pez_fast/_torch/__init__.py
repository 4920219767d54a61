"""Floor 0: the operations in plain torch; they run wherever torch runs. One module per operation."""
