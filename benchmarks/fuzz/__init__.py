"""Damaged and hostile files, made by the thousand, read as the commands read them; see __main__.py."""
