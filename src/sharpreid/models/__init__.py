"""The network of the paper (Sec. III and IV-B)."""
