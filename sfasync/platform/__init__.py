"""Where disks come from: one module for each platform."""
