"""Metadata of stored content in a database: repositories, tags, manifests, links, blobs, times."""
