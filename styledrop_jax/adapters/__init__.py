"""Adapters: small trainable modules set into a frozen model's slots, and their files."""
