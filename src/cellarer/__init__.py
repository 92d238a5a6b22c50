"""Backs up all that a product is made of, proves that it restores, and brings it back."""

__version__ = "0.1.0"
