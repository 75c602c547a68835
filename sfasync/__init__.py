"""sfasync: asynchronous backup and restore of virtual disks over NBD.

The names in `__all__` are public; everything else may change. They are loaded on first use (PEP 562), so importing
this package is cheap.
"""

from . import _version

__version__ = _version.VERSION

__all__ = ["__version__"]
