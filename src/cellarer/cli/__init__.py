"""The command line: thin commands that parse, call one flow and draw the result."""
