"""The corpus and the pretraining of the shipped models."""
