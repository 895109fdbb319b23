"""Samplers: pure functions that take the model as a callback."""
