"""Pages and endpoints for people and monitoring, beside the registry API."""
