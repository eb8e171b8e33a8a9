"""The version of csqtool."""

__version__ = "0.1.0"
