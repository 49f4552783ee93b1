"""Blobs in flight: one writer, many readers, one growing file."""
