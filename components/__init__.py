"""The pipeline's components: one folder each, thin wrappers of modelcore's stages.

A component is a lightweight Python component on one of the project's own images; nothing is installed when it
runs. Its body imports one stage, calls it with paths, and that is all. KFP copies the body's source into the
compiled pipeline, so a body can use nothing from the top of its file, and its imports stand inside.
"""
