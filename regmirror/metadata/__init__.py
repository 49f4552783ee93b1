"""What is known about content: repositories, tags, manifests, references, sizes, times."""
