"""The stages that prepare text, on Spark: the same functions on parts of a corpus, to the same files."""
