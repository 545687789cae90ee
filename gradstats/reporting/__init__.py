"""Rows become sentences, figures and one page."""
