"""What `sfasync demo` does: the main job, on real servers, with a line of explanation each."""

from .story import run

__all__ = ["run"]
