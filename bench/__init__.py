"""`make bench`: how fast the collector accepts, counts and reports, next to two baselines."""
