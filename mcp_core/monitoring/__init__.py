"""Watching the machine and the workers: NVML, host counters, Prometheus text. Imports neither torch nor pages."""
