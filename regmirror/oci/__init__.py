"""Names, request paths, manifests and globs of the OCI specifications, as values."""
