"""What operators see.

======= ===========================================
metrics Prometheus' counters, over all workers
logs    the log on stderr
tracing OpenTelemetry's spans, made after the fact
======= ===========================================
"""
