"""The engine: requests in, token events out. Heavy: only a worker imports it."""
