"""Client of a VisionAI server: a Python class and the `visionai` command line."""
