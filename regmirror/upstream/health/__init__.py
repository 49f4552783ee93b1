"""The health of one upstream, shared by all processes of one storage."""
