"""What notebooks 06 to 09 measure, one idea each."""
