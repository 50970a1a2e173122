"""Predictions → metrics, by the definitions of the field, whichever engine predicted."""
