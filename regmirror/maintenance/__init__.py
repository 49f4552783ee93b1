"""Never full, never rotten: collection, eviction, purge and scrub, and when they are done."""
