"""Stores and raw files behind URLs: read through a local cache; written here, proven, then uploaded."""
