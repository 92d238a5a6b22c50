"""The way of write-ahead log between PostgreSQL and the vault: handed over, fetched, streamed."""
