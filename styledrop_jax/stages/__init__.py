"""The five stages of a run: train, sample, score, select, report."""
