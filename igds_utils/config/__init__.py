"""What one YAML says of an experiment."""
