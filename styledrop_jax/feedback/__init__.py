"""Feedback between rounds: what scores the samples, and what is chosen."""
