"""Models: which there are, what they weigh, and (heavy side) how they are loaded."""
