"""Launch the jobs of a sweep and summarize them."""
