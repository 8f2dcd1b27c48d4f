"""Paged serving: many sequences in one forward pass, their keys and values in pages of one pool."""
