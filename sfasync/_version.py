"""The version, alone in a file, so that `sfasync --version` loads nothing else."""

VERSION = "0.1.0"
