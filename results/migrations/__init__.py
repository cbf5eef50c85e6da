"""How a data base comes to the present schema, one revision a step; run by `results.database`."""
