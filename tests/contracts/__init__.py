"""One suite per interface, run by every implementation: a test class inherits the suite and makes the case."""
