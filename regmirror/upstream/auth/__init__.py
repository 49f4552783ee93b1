"""Authentication at one upstream: credentials, challenges, tokens, and the URL policy."""
