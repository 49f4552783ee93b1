"""Access to upstream registries: one ``UpstreamClient`` each, with authentication, limits and health."""
