"""The model families: one module per family, and the building blocks that only they share."""
