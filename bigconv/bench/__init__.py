"""Measured advice: how fast a loader is, what holds it back, what to set. Drives the public runtime as a user would."""
