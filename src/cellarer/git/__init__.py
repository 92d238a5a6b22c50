"""What sources and targets share of git: the program, mirrors, and what a point holds of them."""
