"""Credentials and tokens for one upstream."""
