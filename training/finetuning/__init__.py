"""Shipped weights → better ones for your own micrographs, clean or noisy; and the measurement that says whether."""
