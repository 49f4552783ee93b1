"""Processes of a server and what one configuration of it is made of."""
