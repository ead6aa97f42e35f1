"""Where models and rows come from; metrics and intervals."""
