"""What can be backed up, one kind in each file."""
