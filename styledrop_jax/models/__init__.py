"""Models of styledrop_jax."""
