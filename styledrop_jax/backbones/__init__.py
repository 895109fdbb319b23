"""Backbones of styledrop_jax."""
