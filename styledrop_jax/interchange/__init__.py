"""Files of other tools: what was trained goes out to them, and theirs come in."""
