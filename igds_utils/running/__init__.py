"""Order of the notebooks, and what a run will cost."""
