"""Weights shipped with emdenoised: one folder each, with a manifest and a model card."""
