"""Figures, as ratios within one run. `make bench` runs them all; none is part of the tests."""
