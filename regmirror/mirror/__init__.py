"""Pull-through: which content is cached, whether it is fresh, and how it is fetched."""
