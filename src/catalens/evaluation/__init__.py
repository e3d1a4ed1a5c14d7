"""Scores of a run by free generation."""
