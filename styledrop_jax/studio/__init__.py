"""The studio: a page on the loopback for choosing, watching and using runs."""
