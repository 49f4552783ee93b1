"""regmirror: a pull-through cache and mirror for container registries."""

__version__ = "0.1.0"
