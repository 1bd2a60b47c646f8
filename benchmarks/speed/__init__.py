"""Speed beside peers: each in a process of its own, all asked in turn, limits of the machine measured between."""
