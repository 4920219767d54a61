"""Floor 0: what the implementations share: near ties settled without error, the table in fp16, tensors and threads for the extensions."""
