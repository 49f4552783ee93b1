"""What regmirror costs and how quick it is, side by side with other servers; see docs/performance.md."""
