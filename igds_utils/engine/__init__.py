"""Models and prompts, their SAEs, and the heavy passes through them."""
