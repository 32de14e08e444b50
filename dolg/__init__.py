"""dolg: instance-level image retrieval. See README.md for the commands."""

__version__ = "0.1.0"
