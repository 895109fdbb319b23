"""The two sides of a benchmark, in processes of their own, each with its own framework alone."""
