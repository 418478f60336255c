"""What an experiment is: its fields, and the named experiments."""
