"""Ranking protocols, scores, and the metric that collects embeddings."""
