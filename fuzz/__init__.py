"""Damaged conversations for the pure protocol: ``python -m fuzz``, or ``make fuzz``."""
