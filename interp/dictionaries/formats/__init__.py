"""Layouts of files that hold dictionaries, a module each: which files make one, how it is read, how it is written."""
