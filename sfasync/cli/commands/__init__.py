"""The commands, one in each module, which has it as `command`."""
