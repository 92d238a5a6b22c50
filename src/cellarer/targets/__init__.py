"""Where a restore goes: a server, a directory, a sandbox that proves it."""
