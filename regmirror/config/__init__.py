"""Configuration: its keys, how it is loaded, and which changes need a restart."""
