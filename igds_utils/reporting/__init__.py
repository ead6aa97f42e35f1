"""From stored products to the report."""
