"""Reinforcement learning of language models with gradient regularization, run from a checkout."""
