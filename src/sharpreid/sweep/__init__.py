"""Launch and summarise many runs."""
