"""Micrographs → weights. Runs on a workstation; the daemon never imports it."""
