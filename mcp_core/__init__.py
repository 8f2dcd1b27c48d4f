"""MCP, Master Control Program: optimize LLM inference and choose a deployment configuration.

MCP here is not Model Context Protocol. ``README.md`` beside this file is the architecture note.
"""

__version__ = "0.1.0"
