"""Commands: one file a verb of the command line; ``cli.py`` has the table of them."""
