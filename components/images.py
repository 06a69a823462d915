"""The container images that components run on."""

from modelcore import __version__

# torch-free: Great Expectations, pandas, pyarrow, sentencepiece.
DATA_IMAGE = f"aic-ai-poc-gpt-data-python:{__version__}"
# torch, transformers and modelcore; CPU by default.
MODEL_IMAGE = f"aic-ai-poc-gpt-model-python:{__version__}"
