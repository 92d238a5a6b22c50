"""What sources and targets share of files: all that belongs to one beside its content."""
