"""Processes of a server, their composition, and their connections."""
