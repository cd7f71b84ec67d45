"""Load, limit and report: `python -m benchmarks`."""
