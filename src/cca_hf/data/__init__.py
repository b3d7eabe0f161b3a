"""From any source of labelled pictures to batches: schema, sampler, transforms, collator, generated data."""
