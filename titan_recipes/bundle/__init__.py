"""Recipe directories: find, read, hash, fork, compare, upgrade, import. Data only, no torch."""
