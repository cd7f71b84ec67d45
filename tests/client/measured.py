"""What the peer has measured, as Prometheus reads it."""

from __future__ import annotations

METRICS = """\
# TYPE visionai_stage_duration_seconds histogram
visionai_stage_duration_seconds_bucket{stage="total",le="0.001"} 90.0
visionai_stage_duration_seconds_bucket{stage="total",le="0.01"} 100.0
visionai_stage_duration_seconds_bucket{stage="total",le="+Inf"} 100.0
visionai_stage_duration_seconds_count{stage="total"} 100.0
visionai_stage_duration_seconds_sum{stage="total"} 0.1
# TYPE visionai_batch_size histogram
visionai_batch_size_bucket{le="8.0"} 50.0
visionai_batch_size_bucket{le="+Inf"} 50.0
visionai_batch_size_count 50.0
visionai_batch_size_sum 100.0
# TYPE visionai_predictions counter
visionai_predictions_total{emotion="happy"} 100.0
# TYPE visionai_errors counter
visionai_errors_total{code="invalid_image"} 3.0
# TYPE visionai_connections gauge
visionai_connections 2.0
# TYPE visionai_queue_depth gauge
visionai_queue_depth 5.0
"""
