"""Streaming moments, significance, ranking: pure functions on arrays."""
