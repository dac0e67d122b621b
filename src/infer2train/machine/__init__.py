"""The machine: devices, cores, memory."""
