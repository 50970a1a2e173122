"""Miniature datasets: generated scenes of textured shapes in the layouts of the real datasets.

One seed gives the same bytes on every machine, because pixels come from integer arithmetic on the
integer draws of NumPy's frozen RandomState stream, seeded per image from (seed, split, index).
"""
