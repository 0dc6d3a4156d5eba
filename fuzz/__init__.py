"""Fuzzing of everything that reads bytes from a peer; see README.md."""
