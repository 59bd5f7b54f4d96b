"""Data with a known truth: sampling from graphs, and ready-made scenarios."""
