"""End-to-end tests: real clients pull real images through regmirror, which runs as its users run it."""
