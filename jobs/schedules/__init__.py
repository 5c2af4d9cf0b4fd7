"""What `orbit schedule` prints: one file per kind of scheduler."""
