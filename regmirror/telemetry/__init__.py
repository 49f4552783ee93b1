"""Events, and the listeners that turn them into metrics and log lines."""
