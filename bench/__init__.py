"""Measurements for those who change sfasync: single parts, and two commits against each other.

What is measured against other programs is `sfasync bench`.
"""
