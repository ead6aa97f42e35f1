"""A preset opened as a run: its products, processes and costs."""
