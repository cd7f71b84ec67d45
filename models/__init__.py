"""The served models: architecture, training, evaluation, sources."""
