"""A preset opened as a run: its products and processes."""
