"""Whether an upstream is available, shared by all processes of one storage."""
