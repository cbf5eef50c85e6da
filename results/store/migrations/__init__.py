"""The migrations of the schema, one file for each revision; `results.store.database` runs them."""
