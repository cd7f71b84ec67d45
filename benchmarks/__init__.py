"""The machine's limit, the service under load, and reports of both: `python -m benchmarks`."""
