"""The OCI distribution API: from HTTP to values and back."""
