"""Metrics: one file a scorer or a distribution metric."""
