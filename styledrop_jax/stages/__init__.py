"""The six stages of a run: train, sample, score, select, judge, report."""
