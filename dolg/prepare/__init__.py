"""Data sets made ready: archives fetched, checked and unpacked, and image lists written."""
