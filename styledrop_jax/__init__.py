"""Teach a text-to-image model a style or a subject from a handful of images, on JAX."""

__version__ = "0.1.0"
