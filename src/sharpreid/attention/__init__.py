"""Sharp attention (paper Sec. III-A and III-D), and the soft attention that the paper compares with."""
