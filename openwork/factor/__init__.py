"""Weights as products of smaller ones: a method a page."""
