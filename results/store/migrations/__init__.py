"""How a database comes to the present schema, one revision a step; run by `results.database`."""
