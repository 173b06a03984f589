"""Reward models: their data, training (Bradley-Terry, GRM), and how good they are."""
