"""The tracking server's own program: serves, and does what its operator needs. Needs nothing else of the project."""
