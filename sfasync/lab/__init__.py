"""A platform to try things on: Sangfor's documented interface in front of real block devices, on this machine.

The interface is that of a Sangfor Cloud Platform as far as the vendor documents it, in front of the disks of a
qemu-storage-daemon: real snapshots, real records of changes, real exports. Where the vendor's documents leave something
open, the lab accepts what a real platform might, and its modules say so; what it does there proves nothing about a real
one. `Lab` is one in this process; `sfasync lab` runs one in the background. Needs the extra ``lab``.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .lab import Lab, LabDisk, LabMachine
    from .machines import MachineSpec

__all__ = ["Lab", "LabDisk", "LabMachine", "MachineSpec"]


def __getattr__(name: str) -> object:
    """A public name, whose module is loaded now: the command needs none of them to talk to a lab that runs."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        module = import_module(".machines" if name == "MachineSpec" else ".lab", __name__)
    except ModuleNotFoundError as error:
        problem = f"sfasync.lab needs {error.name}; install it with: pip install 'sfasync[lab]'"
        raise ModuleNotFoundError(problem, name=error.name) from error
    found: object = getattr(module, name)
    return found
