"""What sources and targets both need of PostgreSQL: programs, clusters, the archive format."""
