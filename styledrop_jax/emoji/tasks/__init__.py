"""One pretraining task a file."""
