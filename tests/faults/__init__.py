"""Faults: what a step, a training and its files are after something went wrong in them."""
