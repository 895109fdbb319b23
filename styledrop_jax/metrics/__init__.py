"""Metrics of styledrop_jax."""
