"""Compressors over captured gradients: rows and their ranking."""
