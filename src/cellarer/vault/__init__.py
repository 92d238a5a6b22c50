"""The vault: encrypted, deduplicating, write-once, on several replicas at once."""
