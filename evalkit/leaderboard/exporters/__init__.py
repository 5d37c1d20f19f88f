"""Leaderboard rows -> other tools: Weights & Biases, lm-evaluation-harness."""
