"""Inference of missing function -> function edges from a trained or training model."""
