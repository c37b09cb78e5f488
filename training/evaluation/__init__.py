"""The proof: the paper's table, its rivals and BM3D, on the same noisy micrographs as any weights."""
