"""One target a file: `run(data)` reads a peer's bytes, and raises what is neither a result nor a typed error."""
