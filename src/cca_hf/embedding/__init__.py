"""Embeds whole catalogues into parquet files; resumable after an interruption."""
