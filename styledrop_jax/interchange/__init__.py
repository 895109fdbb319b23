"""Files of other tools: what a run learnt written for them, and theirs read to start from."""
