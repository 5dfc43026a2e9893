"""Noise stages: one file a way of choosing or refining the initial noise."""
