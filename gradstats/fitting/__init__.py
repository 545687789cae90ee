"""Which distribution fits, how well, and what is known without one: rows and their ranking."""
