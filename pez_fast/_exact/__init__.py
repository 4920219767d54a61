"""Floor 0: what every implementation of the search uses: near ties settled without error."""
