"""Every test of this folder runs in a home of its own and must leave nothing behind."""

from leak_check import isolated_home, no_leaks

__all__ = ["isolated_home", "no_leaks"]
