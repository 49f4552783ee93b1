"""Content by digest: where bytes are kept, and how they get there."""
