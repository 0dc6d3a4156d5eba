"""The policy server: one process, several dialects, one policy per device."""
