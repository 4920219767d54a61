"""Floor 0: what the implementations share: exact decision of near ties, the fp16 table, pointers and threads."""
