"""Which distribution fits, how well, and what is known without one: rows and their ranking."""

from gradstats.fitting.run import fit

__all__ = ["fit"]
