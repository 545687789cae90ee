"""Compressors made of compressors: memories, policies, recoding, one per parameter."""
