"""Rules on any model, one paper a file."""
