"""One module a deployable format; each knows `QuantizedModel` and nothing of the search that made it."""
