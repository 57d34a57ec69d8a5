"""Conformance suites that every store and source passes, shipped so that plug-ins can use them."""
