"""Benchmarks: throughput, latency, CPU and memory of regmirror and of other servers (docs/performance.md)."""
