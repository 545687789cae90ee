"""Mistakes as people make them, and the answers that they get."""
