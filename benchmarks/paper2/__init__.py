"""Claims of the second paper (arXiv 2509.20997), on coders that are trained alike."""
