"""The network of the paper's Sec. IV-B."""
