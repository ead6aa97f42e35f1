"""Arms: fine-tuned, and what is kept of each."""
