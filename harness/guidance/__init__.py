"""Guidance: one file a way of combining predictions."""
