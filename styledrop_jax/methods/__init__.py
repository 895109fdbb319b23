"""Methods of styledrop_jax."""
