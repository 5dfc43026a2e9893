"""The embedded world: 64x64 scenes of coloured shapes with a CLIP and a Stable Diffusion of their own.

``scene`` draws, ``grammar`` speaks and holds the compositional split, ``detector`` judges, ``train`` makes the
weights from nothing, ``evaluate`` measures them. Nothing here needs a download.
"""
