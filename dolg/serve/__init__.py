"""Asking a database with a photograph: from Python, on the command line, on a local page."""
