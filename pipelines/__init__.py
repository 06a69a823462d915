"""The pipeline, its compiled form, and the local runner."""
