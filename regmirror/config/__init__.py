"""Configuration: keys, reading, changes."""
