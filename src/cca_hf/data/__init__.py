"""Prepares labelled images for training: schema, sampler, transforms, collator, generated data."""
