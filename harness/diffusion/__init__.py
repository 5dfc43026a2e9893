"""Diffusion models: one file a family behind one small interface, and the samplers that they share."""
