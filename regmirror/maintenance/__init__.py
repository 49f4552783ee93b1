"""Maintenance of a store: capacity, eviction, garbage collection, purge, scrub, and their schedule."""
