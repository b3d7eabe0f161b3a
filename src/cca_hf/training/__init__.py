"""The conditional triplet loss, the Trainer around it, and the recipe that `scripts/train.py` runs."""
