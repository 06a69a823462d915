"""How good a model is: held-out text, compressors beside it, samples, the gate, the report."""
