"""Pulling through: what is cached, what is fresh, what is fetched."""
