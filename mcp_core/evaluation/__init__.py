"""Measuring: load generation, metric definitions, benchmarks."""
