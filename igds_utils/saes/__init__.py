"""Training and judging the shipped SAEs."""
