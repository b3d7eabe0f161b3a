"""Embeddings of whole catalogues: written to parquet as they are made, and gone on with after an interruption."""
