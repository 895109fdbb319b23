"""What the benchmarks run in processes of their own: each side imports its own framework and not the other's."""
