"""The whole story on one machine, with a sample product."""
