"""Memory: quantization and attention. Heavy: only a worker or a job child imports it."""
