"""Serving: the worker process and its HTTP API (heavy), the supervisor and the client (light)."""
