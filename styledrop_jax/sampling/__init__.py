"""Pure samplers: parallel decoding, diffusion schedulers, attention control."""
