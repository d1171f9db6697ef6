"""`make bench`: what the collector takes, counts and answers, beside two baselines."""
