"""The stages of the pipeline, one function a file.

A stage reads paths, writes paths and returns a :class:`~modelcore.stages.stage.StageSummary`. The command line and the
pipeline's components are thin wrappers of these functions, so both do the same.
"""
