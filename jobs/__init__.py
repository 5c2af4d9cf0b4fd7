"""The `orbit` command: one small file per verb."""
