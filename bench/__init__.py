"""Benchmarks. Each runs as `python -m bench.NAME`, prints a table with a correctness column, and takes --json."""
