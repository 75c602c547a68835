"""Tests of the commands, each run as a process of its own against real servers."""
