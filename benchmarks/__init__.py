"""Step cost, memory and precision, printed as ratios measured in one run."""
