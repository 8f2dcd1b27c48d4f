"""Deciding: the store of Runs and, later, comparison and recommendation."""
