"""The platform `qemu`: VMs of QEMU, and disks of qemu-storage-daemon."""
