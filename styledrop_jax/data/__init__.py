"""The corpus the shipped models learn from, and the images a user brings."""
