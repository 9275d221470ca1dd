"""The version, where reading it loads nothing."""

__version__ = "0.1.0"
