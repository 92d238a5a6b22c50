"""Use cases: what the program does, as plain functions over ports and the vault."""
