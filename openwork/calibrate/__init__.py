"""Compress a trained model in one pass over calibration data: a method a page."""
