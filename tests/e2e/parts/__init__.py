"""The stage of the end-to-end tests: images, registries, a recording proxy, the mirror, and real clients."""
