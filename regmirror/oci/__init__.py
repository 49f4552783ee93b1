"""Names, paths, manifests and patterns as values."""
