"""Drawn sample catalogues."""
