"""A machine's configuration as the platform's snapshots keep it."""

from __future__ import annotations

from typing import Any

from ..units import GiB
from .machines import Machine

STORAGE_ID = "1fd63ecb_vs_vol_rep3"
"""The one datastore."""


def configuration(machine: Machine) -> dict[str, Any]:
    """A machine's configuration as snapshots keep it: the platform's `vmconf`."""
    disks = [
        {
            "device_id": disk.id,
            "adapter_type": "VIRTIO",
            "disk_type": "NEW_DISK",
            "format_type": "OFF",
            "size_gb": disk.size / GiB if disk.size % GiB else disk.size // GiB,
            "base_image_id": "",
            "io_config": {"read_iops": 0, "read_kbps": 0, "write_iops": 0, "write_kbps": 0},
            "advanced_config": {"policy_id": "", "serial_number": disk.node},
        }
        for disk in machine.disks
    ]
    return {
        "name": machine.name,
        "description": "",
        "group_id": "",
        "host_id": "cluster",
        "datastore_id": STORAGE_ID,
        "source": "",
        "application": "",
        "compatibility_version": {"src_hci_version": "6.11.3", "vmx_version": 1},
        "os_option": {"arch": "x86_64", "kernel_name": "linux", "distribution_name": "debian12"},
        "advanced_option": {
            "tpm_enabled": "TPM" in machine.files,
            "turbo_mode_enabled": False,
            "encrypted": False,
            "uuid": {"enable": True, "only_2_qemu": False, "uuid": machine.id},
        },
        "hardware_option": {
            "bios": {"bios_type": "CUSTOM" if "BIOS" in machine.files else "SEABIOS", "boot_disk": machine.disks[0].id},
            "cpu": {"sockets": 1, "cores": 2},
            "memory": {"size_gb": 2},
            "disks": disks,
            "network_adapters": [],
            "cdroms": [],
        },
    } | machine.settings
