"""Readers of trained networks and of their data, and the catalogue of those that are studied."""
