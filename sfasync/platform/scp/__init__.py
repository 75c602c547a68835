"""Sangfor Cloud Platform: its REST interface, and the flows of backup and restore above it."""
