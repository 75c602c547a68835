"""A platform to try things on: Sangfor's documented interface in front of real block devices, on this machine.

The interface is that of a Sangfor Cloud Platform as far as the vendor documents it, in front of the disks of a
qemu-storage-daemon: real snapshots, real records of changes, real exports. Where the vendor's documents leave something
open, the lab accepts what a real platform might, and its modules say so; what it does there proves nothing about a real
one. `Lab` is one in this process; `sfasync lab` runs one in the background. Needs the extra ``lab``.
"""

from .lab import Lab, LabDisk, LabMachine
from .machines import MachineSpec

__all__ = ["Lab", "LabDisk", "LabMachine", "MachineSpec"]
