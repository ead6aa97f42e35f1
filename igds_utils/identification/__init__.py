"""Task features: frequency recall, causal effects, and the score they give a sample."""
